"""Upscalers on PyTorch: every key layout and scale against its published forward pass, and every kind of image."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional

import calotype
from calotype.errors import BackendError, InputError, SourceError
from calotype.export.quality.metrics import psnr
from calotype.report.like import read_like
from tests.helpers.upscaling import reference as upscalers

CASES = {
    "RRDBNet x4": ({}, 4),
    "RRDBNet x2, unshuffled": ({"unshuffle": 2}, 2),
    "RRDBNet x1, unshuffled": ({"unshuffle": 4}, 1),
    "RRDBNet x2": ({"doublings": 1}, 2),
    "RRDBNet x1": ({"doublings": 0}, 1),
    "RRDBNet x8": ({"doublings": 3, "width": 6, "growth": 3, "blocks": 1}, 8),
}
LAYOUTS = {"Real-ESRGAN": dict, "old": upscalers.in_old_layout, "later": upscalers.in_later_layout}
IMAGE = torch.rand((1, 3, 13, 18), generator=torch.Generator().manual_seed(7))  # no multiple of 2 or 4


def saved(path, weights):
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    return path


def pixels_of(tensor):
    return np.ascontiguousarray(tensor.clamp(0, 1).numpy().transpose(0, 2, 3, 1))


@pytest.fixture(scope="module")
def compact(tmp_path_factory):
    """The file of a compact network of scale 4."""
    return saved(tmp_path_factory.mktemp("upscaler") / "compact.safetensors", upscalers.compact_weights())


@pytest.fixture(scope="module")
def upscaler(compact):
    return calotype.load_upscaler(compact, backend="eager")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_rrdbnet_is_the_published_network(case, layout, tmp_path):
    settings, scale = CASES[case]
    weights = upscalers.rrdb_weights(**settings)
    unshuffle, blocks = settings.get("unshuffle", 1), settings.get("blocks", 2)
    padded = functional.pad(IMAGE, (0, -18 % unshuffle, 0, -13 % unshuffle), mode="replicate")
    expected = upscalers.rrdb_forward(weights, padded, unshuffle=unshuffle, blocks=blocks)[
        ..., : 13 * scale, : 18 * scale
    ]
    upscaler = calotype.load_upscaler(saved(tmp_path / "a.safetensors", LAYOUTS[layout](weights)), backend="eager")
    assert (upscaler.scale, upscaler.backend) == (scale, "eager")
    got = upscaler.upscale_pixels(pixels_of(IMAGE))
    assert pixels_of(expected).std() > 0.01
    np.testing.assert_allclose(got, pixels_of(expected), atol=2e-6)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_the_compact_network_is_the_published_one(scale, tmp_path):
    weights = upscalers.compact_weights(scale=scale, convs=scale)
    expected = pixels_of(upscalers.compact_forward(weights, IMAGE, scale=scale))
    upscaler = calotype.load_upscaler(saved(tmp_path / "a.safetensors", weights), backend="eager")
    assert upscaler.scale == scale
    np.testing.assert_allclose(upscaler.upscale_pixels(pixels_of(IMAGE)), expected, atol=2e-6)


@pytest.mark.parametrize("key", ["params_ema", "params", None])
def test_a_pickle_of_weights_is_read(key, tmp_path, upscaler):
    weights = upscalers.compact_weights()
    torch.save(weights if key is None else {key: weights, "iter": 5}, tmp_path / "a.pth")
    other = calotype.load_upscaler(tmp_path / "a.pth", backend="eager")
    np.testing.assert_array_equal(other.upscale_pixels(pixels_of(IMAGE)), upscaler.upscale_pixels(pixels_of(IMAGE)))


def test_half_precision_is_read(tmp_path, upscaler):
    halves = {name: tensor.half() for name, tensor in upscalers.compact_weights().items()}
    torch.save(halves, tmp_path / "a.pth")
    for path in (tmp_path / "a.pth", saved(tmp_path / "a.safetensors", halves)):
        got = calotype.load_upscaler(path, backend="eager").upscale_pixels(pixels_of(IMAGE))
        assert psnr(got, upscaler.upscale_pixels(pixels_of(IMAGE))) > 60


class Dangerous:
    def __reduce__(self):
        return print, ("run",)


def test_a_pickle_runs_no_code(tmp_path, capsys):
    (tmp_path / "a.pth").write_bytes(pickle.dumps({"params": Dangerous()}))
    torch.save({"params": Dangerous()}, tmp_path / "b.pth")
    for name in ("a.pth", "b.pth"):
        with pytest.raises(SourceError, match=r"\.pth"):
            calotype.load_upscaler(tmp_path / name, backend="eager")
    assert "run" not in capsys.readouterr().out


def without(weights, name):
    return {key: tensor for key, tensor in weights.items() if not key.startswith(name)}


WRONG = {
    "empty": {},
    "a LoRA": {"lora_unet_x.lora_down.weight": torch.zeros(4, 4)},
    "no PReLU": without(upscalers.compact_weights(), "body.1."),
    "four channels": upscalers.compact_weights() | {"body.0.weight": torch.zeros(8, 4, 3, 3)},
    "no last layer": without(upscalers.rrdb_weights(), "conv_last"),
    "no block": without(upscalers.rrdb_weights(), "body.1.rdb2.conv3"),
    "one layer more": upscalers.rrdb_weights() | {"attention.weight": torch.zeros(8, 8)},
    "another kernel": upscalers.rrdb_weights() | {"conv_body.weight": torch.zeros(8, 8, 1, 1)},
    "a scale of 16": upscalers.rrdb_weights(doublings=4),
}


@pytest.mark.parametrize("case", WRONG)
def test_another_network_is_refused(case, tmp_path):
    path = saved(tmp_path / "a.safetensors", WRONG[case])
    with pytest.raises((SourceError, BackendError), match="upscaler"):
        calotype.load_upscaler(path, backend="eager")


@pytest.mark.parametrize("name", ["none.pth", "folder", "a.txt", "a.safetensors", "a.pth"])
def test_a_file_that_is_no_network_is_refused(name, tmp_path):
    (tmp_path / "folder").mkdir()
    for file in ("a.txt", "a.safetensors", "a.pth"):
        (tmp_path / file).write_bytes(b"junk" * 40)
    with pytest.raises(SourceError) as caught:
        calotype.load_upscaler(tmp_path / name, backend="eager")
    assert caught.value.path == tmp_path / name
    for wrong in (None, 3, ""):
        with pytest.raises(InputError, match="file"):
            calotype.load_upscaler(wrong)


def test_tiles_give_the_same_image(tmp_path):
    weights = upscalers.rrdb_weights(unshuffle=2)
    upscaler = calotype.load_upscaler(saved(tmp_path / "a.safetensors", weights), backend="eager")
    image = np.random.default_rng(0).random((1, 101, 150, 3), np.float32)
    full, tiled = upscaler.upscale_pixels(image), upscaler.upscale_pixels(image, tile=64)
    assert full.shape == tiled.shape == (1, 202, 300, 3)
    assert psnr(tiled, full) > 45


def test_little_memory_means_tiles(upscaler, monkeypatch):
    from calotype.upscaling import upscaler as module

    sides = []
    run = upscaler._run
    monkeypatch.setattr(upscaler, "_run", lambda image: sides.append(image.shape[2:]) or run(image))
    monkeypatch.setattr(module, "available_bytes", lambda: 20 << 20)
    image = np.random.default_rng(0).random((300, 200, 3), np.float32)
    with pytest.raises(InputError, match="memory"):  # the result alone does not fit
        upscaler(image)
    monkeypatch.setattr(module, "check_memory", lambda need, have: None)
    assert upscaler(image).size == (800, 1200)
    assert len(sides) > 1
    assert max(map(max, sides)) <= 256


def test_the_scale_is_reached_by_lanczos(upscaler):
    image = Image.effect_noise((20, 15), 60).convert("RGB")
    full = upscaler(image)
    assert full.size == (80, 60)
    assert upscaler(image, scale=2).size == (40, 30)
    expected = np.asarray(full.resize((40, 30), Image.Resampling.LANCZOS), dtype=float)
    assert psnr(np.asarray(upscaler(image, scale=2), dtype=float), expected, 255) > 45
    assert upscaler(image, scale=6.5).size == (130, 98)


def test_transparency_is_enlarged(upscaler):
    image = Image.new("RGBA", (16, 12), (200, 30, 30, 255))
    image.paste((0, 0, 0, 0), (0, 0, 8, 12))
    result = upscaler(image)
    alpha = np.asarray(result)[..., 3]
    assert (result.mode, result.size) == ("RGBA", (64, 48))
    assert (alpha[:, :24] < 8).all()
    assert (alpha[:, 40:] > 247).all()


KINDS = ("L", "1", "P", "LA", "CMYK", "I;16")


@pytest.mark.parametrize("mode", KINDS)
def test_images_of_any_kind(mode, upscaler):
    gray = Image.linear_gradient("L").resize((24, 16))
    image = Image.fromarray(np.asarray(gray, dtype=np.uint16) * 257) if mode == "I;16" else gray.convert(mode)
    result = upscaler(image)
    assert result.size == (96, 64)
    assert np.asarray(result.convert("RGB")).std() > 20


def test_files_and_arrays_are_taken(upscaler, tmp_path):
    image = Image.effect_noise((20, 12), 60).convert("RGB")
    image.save(tmp_path / "a.png")
    expected = np.asarray(upscaler(image))
    for other in (tmp_path / "a.png", str(tmp_path / "a.png"), np.asarray(image)):
        np.testing.assert_array_equal(np.asarray(upscaler(other)), expected)
    one = upscaler(Image.new("RGB", (1, 1), "red"))
    assert one.size == (4, 4)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        *(({"scale": value}, "scale") for value in (0, 0.5, -1, 17, float("nan"), "2", True)),
        *(({"tile": value}, "tile") for value in (0, 16, 5000, 64.0, "64", True)),
        *(({"image": value}, "image") for value in (None, 3, np.zeros((0, 4, 3)), np.full((4, 4, 3), np.nan))),
        ({"sclae": 2}, "sclae"),
    ],
)
def test_odd_arguments_raise(arguments, name, upscaler):
    with pytest.raises(InputError, match=name) as caught:
        upscaler(**{"image": Image.new("RGB", (8, 8)), **arguments})
    assert caught.value.argument == name


def test_a_result_that_is_too_large_is_refused(upscaler):
    with pytest.raises(InputError, match="million"):
        upscaler(Image.new("RGB", (3000, 3000)), scale=16)


def test_hires_takes_an_upscaler(fake, compact, tmp_path):
    settings = {"steps": 2, "seed": 1, "width": 64, "height": 48, "hires": 2, "hires_steps": 1}
    by_file = fake("x", hires_upscaler=compact, **settings)
    by_object = fake("x", hires_upscaler=calotype.load_upscaler(compact, backend="fake"), **settings)
    image = by_file.images[0]
    assert image.size == (128, 96)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(by_object.images[0]))
    assert "hires enlarge" in by_file.report.seconds
    image.info["backend"] = "eager"
    image.save(tmp_path / "a.png")
    arguments = read_like(tmp_path / "a.png", (), loras_named=False, model_named=False).arguments
    assert arguments["hires_upscaler"] == str(compact)
    np.testing.assert_array_equal(np.asarray(fake(**arguments).images[0]), np.asarray(image))


def test_a_png_cannot_choose_another_upscaler(fake, tmp_path):
    path = saved(tmp_path / "a.safetensors", upscalers.compact_weights(scale=2))
    image = fake("x", steps=1, seed=1, hires=1.5, hires_steps=1, hires_upscaler=path).images[0]
    image.info["backend"] = "eager"
    image.save(tmp_path / "a.png")
    saved(path, upscalers.compact_weights(scale=2, seed=1))
    with pytest.raises(InputError, match="hires-upscaler") as caught:
        read_like(tmp_path / "a.png", (), loras_named=False, model_named=False)
    assert caught.value.argument == "hires_upscaler"
    like = read_like(tmp_path / "a.png", ("hires_upscaler",), loras_named=False, model_named=False)
    assert "hires_upscaler" in like.arguments


def test_a_wrong_upscaler_raises_before_the_work(fake, tmp_path):
    for wrong in (tmp_path / "none.pth", "nearest-exact"):
        with pytest.raises(SourceError, match="upscaler"):
            fake("x", steps=1, hires=2, hires_steps=1, hires_upscaler=wrong)
    assert fake.component("unet").runner.calls == 0
