"""The autoencoder as a codec: diffusers' latents and pixels, in one go, picture by picture, and tile by tile."""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from calotype.errors import CalotypeError, InputError
from calotype.export.quality.metrics import psnr
from calotype.images.tiling import tiled
from calotype.stages.vae import Codec, VaeTiling


@pytest.fixture(scope="module")
def vae(demo_folder):
    return diffusers.AutoencoderKL.from_pretrained(demo_folder / "vae", low_cpu_mem_usage=False).eval()


@pytest.fixture(scope="module")
def picture(pipe):
    """A scene of 320 x 256 pixels, as the model's own are."""
    return pipe("a large red circle on a blue background", seed=7, steps=6, width=320, height=256).images[0]


def test_both_ways_are_diffusers(pipes, vae, picture):
    pixels = torch.from_numpy(np.asarray(picture).transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1)
    with torch.inference_mode():
        latents = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
        back = (vae.decode(latents / vae.config.scaling_factor).sample * 0.5 + 0.5).clamp(0, 1)
    for backend, least in (("eager", 60), ("onnxruntime", 50)):
        got = pipes[backend].encode(picture)
        assert got.dtype == np.float32
        assert psnr(got, latents.numpy(), peak=float(latents.max() - latents.min())) >= least
        made = pipes[backend].decode(got, output_type="np")
        assert psnr(made, back.numpy().transpose(0, 2, 3, 1)) >= least


def test_a_picture_comes_back(pipe, picture):
    again = pipe.decode(pipe.encode(picture))[0]
    assert again.size == (320, 256)
    assert psnr(np.asarray(again), np.asarray(picture), peak=255) >= 25


def test_seams_of_tiles(pipe, picture):
    """Group norms see a tile in place of the whole, so it is not the same; no seam is to be seen."""
    latents = pipe.encode(picture)
    assert psnr(pipe.encode(picture, tile=128), latents, peak=float(np.ptp(latents))) >= 28
    whole, in_tiles = (pipe.decode(latents, output_type="np", tile=tile)[0] for tile in (None, 128))
    assert psnr(in_tiles, whole) >= 30
    assert np.abs(np.diff(in_tiles - whole, axis=0)).max() < 0.1
    assert np.abs(np.diff(in_tiles - whole, axis=1)).max() < 0.1
    as_large = pipe.decode(latents, output_type="np", tile=512)[0]
    np.testing.assert_allclose(as_large, whole, atol=1e-5)  # a tile that holds it all


def test_picture_by_picture_is_the_same(pipe, picture):
    both = [picture, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    latents = pipe.encode(both)
    np.testing.assert_allclose(pipe.encode(both, sliced=True), latents, atol=1e-5)
    whole, sliced = (pipe.decode(latents, output_type="np", sliced=s) for s in (False, True))
    np.testing.assert_allclose(sliced, whole, atol=1e-5)


@pytest.mark.parametrize(("height", "width", "side"), [(5, 7, 4), (8, 8, 8), (3, 20, 4), (9, 4, 4), (16, 17, 16)])
@pytest.mark.parametrize("ratio", [1, 2, 0.5])
def test_tiles_cover_all_and_weigh_one(height, width, side, ratio):
    if ratio < 1:
        height, width, side = (2 * n for n in (height, width, side))
    given = np.random.default_rng(0).random((2, 3, height, width)).astype(np.float32)
    if ratio < 1:

        def run(part):
            return part[:, :, ::2, ::2]
    else:

        def run(part):
            return part.repeat(ratio, axis=2).repeat(ratio, axis=3)

    np.testing.assert_allclose(tiled(run, given, side, ratio), run(given), atol=1e-6)


def test_what_does_not_fit_goes_in_portions(pipe, picture, monkeypatch):
    codec = Codec(pipe.plan, pipe.component)
    for mebibytes, wanted in ((None, VaeTiling()), (10**6, VaeTiling()), (400, VaeTiling(sliced=True))):
        have = None if mebibytes is None else mebibytes * 2**20
        monkeypatch.setattr("calotype.stages.vae.available_bytes", lambda have=have: have)
        assert codec.tiling(4, 1024, 1024) == wanted
    found = codec.tiling(1, 2048, 2048)
    assert (found.tile, found.sliced) == (1024, False)
    assert "in tiles of 1024 pixels: the whole needs about 1.5 GiB of memory, and 400 MiB are free" in found.note


def test_a_picture_made_in_tiles_says_so(fake, monkeypatch):
    monkeypatch.setattr("calotype.stages.vae.available_bytes", lambda: 2**22)
    notes = fake("x", steps=1, width=512, height=512).report.notes
    assert any("in tiles of 256 pixels" in note for note in notes)
    assert fake.component("vae_decoder").runner.calls == 9


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"tile": 100}, "tile must be a multiple of 8 pixels, 64 or more; got 100"),
        ({"tile": 8}, "64 or more"),
        ({"tile": "large"}, "got 'large'"),
    ],
)
def test_tiles_that_are_none(fake, arguments, told):
    with pytest.raises(InputError, match=told):
        fake.decode(np.zeros((1, 4, 16, 16), np.float32), **arguments)


def test_latents_and_pictures_that_are_none(fake):
    shape = (1, 4, 16, 16)
    no_numbers = (np.full(shape, "x"), np.full(shape, None), np.zeros(shape, np.complex64))
    for wrong in (np.zeros((4, 16, 16), np.float32), np.zeros((1, 3, 16, 16), np.float32), "latents", *no_numbers):
        with pytest.raises(InputError, match="latents are an array"):
            fake.decode(wrong)
    with pytest.raises(InputError, match="output_type must be pil or np"):
        fake.decode(np.zeros((1, 4, 16, 16), np.float32), output_type="latent")
    with pytest.raises(InputError, match="image must be a picture"):
        fake.encode([])
    with pytest.raises(CalotypeError, match="not finite"):
        fake.decode(np.full((1, 4, 16, 16), np.nan, np.float32))


@pytest.mark.parametrize("side", [64, 72, 200])
def test_tiles_that_come_out_smaller_lie_where_they_belong(side):
    """A ramp, pooled by eights: what a tile laid half a place aside would show."""
    given = np.broadcast_to(np.arange(512, dtype=np.float32), (1, 3, 512, 512))

    def pooled(part):
        return part.reshape(1, 3, part.shape[2] // 8, 8, part.shape[3] // 8, 8).mean(axis=(3, 5))

    np.testing.assert_allclose(tiled(pooled, given, side, 1 / 8), pooled(given), atol=1e-3)


def test_no_latents_at_all_are_told(pipe):
    for how in ({}, {"sliced": True}, {"tile": 128}):
        with pytest.raises(InputError, match="latents are an array"):
            pipe.decode(np.zeros((0, 4, 16, 16), np.float32), **how)
