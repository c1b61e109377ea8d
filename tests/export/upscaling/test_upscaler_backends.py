"""A traced upscaler on every backend against its published forward pass, its engine, and the command."""

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

import calotype
from calotype import cli
from calotype.errors import InputError
from calotype.export import prepare_upscaler
from calotype.export.quality.metrics import psnr
from calotype.export.tensorrt.builder import build_engine, shapes_of
from calotype.export.tensorrt.engines import default_profile
from calotype.export.tensorrt.options import EngineOptions
from tests.helpers.upscaling import reference as upscalers

pytestmark = pytest.mark.slow
BACKENDS = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Network -> its file, its weights, and its forward pass; each is traced once."""
    import torch

    folder = tmp_path_factory.mktemp("upscalers")
    rrdb, compact = upscalers.rrdb_weights(unshuffle=2), upscalers.compact_weights(scale=3)
    torch.save({"params_ema": upscalers.in_later_layout(rrdb)}, folder / "rrdb.pth")
    save_file(compact, folder / "compact.safetensors")
    return {
        "rrdb": (folder / "rrdb.pth", lambda x: upscalers.rrdb_forward(rrdb, x, unshuffle=2)),
        "compact": (folder / "compact.safetensors", lambda x: upscalers.compact_forward(compact, x, scale=3)),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["rrdb", "compact"])
def test_it_runs_on_every_backend(name, backend, networks):
    import torch

    path, forward = networks[name]
    upscaler = calotype.load_upscaler(path, backend=backend)
    assert upscaler.backend == backend
    for height, width in ((20, 34), (48, 30)):
        image = np.random.default_rng(height).random((2, height, width, 3), np.float32)
        expected = forward(torch.from_numpy(image.transpose(0, 3, 1, 2))).clamp(0, 1).numpy().transpose(0, 2, 3, 1)
        assert psnr(upscaler.upscale_pixels(image), expected) > 100


@pytest.mark.parametrize("name", ["rrdb", "compact"])
def test_tensorrt_rtx_builds_it(name, networks):
    trt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13")
    planned = prepare_upscaler(networks[name][0])
    graph = planned.component.artifact("onnx").path
    shapes = shapes_of("upscaler", planned.component.inputs, default_profile(planned.profile))
    assert build_engine(trt, graph, [shapes], EngineOptions(targets=(89,))).engine


def run(*arguments):
    return CliRunner().invoke(cli.app, ["upscale", *map(str, arguments)])


def size_and_mode(path):
    with Image.open(path) as image:
        return image.size, image.mode


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, (suffix, mode) in enumerate((("png", "RGBA"), ("jpg", "RGB"), ("webp", "RGB"))):
        Image.effect_noise((20 + i, 16), 60).convert(mode).save(folder / f"{i}.{suffix}")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_the_command_writes_one_image(networks, photos, tmp_path):
    options = ("--model", networks["compact"][0], "--backend", "eager")
    done = run(photos / "0.png", "-o", tmp_path / "a.png", "--scale", 2, *options)
    assert done.exit_code == 0, done.output
    assert "40 x 32" in done.output
    assert size_and_mode(tmp_path / "a.png") == ((40, 32), "RGBA")
    assert run(photos / "0.png", "-o", tmp_path / "a.jpg", *options).exit_code == 0
    assert size_and_mode(tmp_path / "a.jpg") == ((60, 48), "RGB")


def test_the_command_writes_a_folder(networks, photos, tmp_path):
    done = run(photos, "-o", tmp_path / "large", "--model", networks["compact"][0], "--backend", "eager")
    assert done.exit_code == 0, done.output
    sizes = {path.name: size_and_mode(path)[0] for path in (tmp_path / "large").iterdir()}
    assert sizes == {"0.png": (60, 48), "1.png": (63, 48), "2.png": (66, 48)}


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        (("none.png", "-o", "a.png"), "images"),
        (("empty", "-o", "a"), "images"),
        (("a.png", "-o", "a.png"), "output"),
        (("a.png", "-o", "b.txt"), "output"),
        (("a.png", "-o", "b"), "output"),
        (("a.png", "sub/a.png", "-o", "large"), "output"),
        (("a.png", "sub/b.png", "-o", "b.png"), "output"),
        (("a.png", "-o", "b.png", "--scale", "0.5"), "scale"),
        (("a.png", "-o", "b.png", "--scale", "nan"), "scale"),
    ],
)
def test_odd_input_of_the_command_is_one_sentence(arguments, argument, networks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "sub"):
        (tmp_path / folder).mkdir()
    for name in ("a.png", "sub/a.png", "sub/b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    done = run(*arguments, "--model", networks["compact"][0], "--backend", "eager")
    assert isinstance(done.exception, InputError)
    assert done.exception.argument == argument
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "empty", "sub"]
