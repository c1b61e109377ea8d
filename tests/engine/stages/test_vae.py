"""The VAE as a codec: the latents and pixels of diffusers, in one run, sliced, and tiled."""

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
def image(pipe):
    """A generated scene of 320 x 256 pixels."""
    return pipe("a large red circle on a blue background", seed=7, steps=6, width=320, height=256).images[0]


def test_encode_and_decode_match_diffusers(pipes, vae, image):
    pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1)
    with torch.inference_mode():
        latents = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
        back = (vae.decode(latents / vae.config.scaling_factor).sample * 0.5 + 0.5).clamp(0, 1)
    for backend, min_db in (("eager", 60), ("onnxruntime", 50)):
        got = pipes[backend].encode(image)
        assert got.dtype == np.float32
        assert psnr(got, latents.numpy(), peak=float(latents.max() - latents.min())) >= min_db
        decoded = pipes[backend].decode(got, output_type="np")
        assert psnr(decoded, back.numpy().transpose(0, 2, 3, 1)) >= min_db


def test_an_image_survives_the_round_trip(pipe, image):
    again = pipe.decode(pipe.encode(image))[0]
    assert again.size == (320, 256)
    assert psnr(np.asarray(again), np.asarray(image), peak=255) >= 25


def test_seams_of_tiles(pipe, image):
    """Group norms see one tile only, so the result differs; no seam may be visible."""
    latents = pipe.encode(image)
    assert psnr(pipe.encode(image, tile=128), latents, peak=float(np.ptp(latents))) >= 28
    full, in_tiles = (pipe.decode(latents, output_type="np", tile=tile)[0] for tile in (None, 128))
    assert psnr(in_tiles, full) >= 30
    assert np.abs(np.diff(in_tiles - full, axis=0)).max() < 0.1
    assert np.abs(np.diff(in_tiles - full, axis=1)).max() < 0.1
    as_large = pipe.decode(latents, output_type="np", tile=512)[0]
    np.testing.assert_allclose(as_large, full, atol=1e-5)  # one tile covers the image


def test_slicing_does_not_change_the_result(pipe, image):
    both = [image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    latents = pipe.encode(both)
    np.testing.assert_allclose(pipe.encode(both, sliced=True), latents, atol=1e-5)
    full, sliced = (pipe.decode(latents, output_type="np", sliced=s) for s in (False, True))
    np.testing.assert_allclose(sliced, full, atol=1e-5)


@pytest.mark.parametrize(("height", "width", "side"), [(5, 7, 4), (8, 8, 8), (3, 20, 4), (9, 4, 4), (16, 17, 16)])
@pytest.mark.parametrize("ratio", [1, 2, 0.5])
def test_tiles_cover_everything_with_weight_one(height, width, side, ratio):
    if ratio < 1:
        height, width, side = (2 * n for n in (height, width, side))
    array = np.random.default_rng(0).random((2, 3, height, width)).astype(np.float32)
    if ratio < 1:

        def run(part):
            return part[:, :, ::2, ::2]
    else:

        def run(part):
            return part.repeat(ratio, axis=2).repeat(ratio, axis=3)

    np.testing.assert_allclose(tiled(run, array, side, ratio), run(array), atol=1e-6)


def test_a_batch_that_does_not_fit_is_sliced_or_tiled(pipe, image, monkeypatch):
    codec = Codec(pipe.plan, pipe.component)
    for mebibytes, expected in ((None, VaeTiling()), (10**6, VaeTiling()), (400, VaeTiling(sliced=True))):
        have = None if mebibytes is None else mebibytes * 2**20
        monkeypatch.setattr("calotype.stages.vae.available_bytes", lambda have=have: have)
        assert codec.tiling(4, 1024, 1024) == expected
    tiling = codec.tiling(1, 2048, 2048)
    assert (tiling.tile, tiling.sliced) == (1024, False)
    assert "1024 pixels" in tiling.note


def test_a_note_reports_tiling(fake, monkeypatch):
    monkeypatch.setattr("calotype.stages.vae.available_bytes", lambda: 2**22)
    notes = fake("x", steps=1, width=512, height=512).report.notes
    assert any("256 pixels" in note for note in notes)
    assert fake.component("vae_decoder").runner.calls == 9


@pytest.mark.parametrize(
    ("arguments", "keyword"),
    [
        ({"tile": 100}, "multiple of 8"),
        ({"tile": 8}, "64"),
        ({"tile": "large"}, "large"),
    ],
)
def test_invalid_tiles_raise(fake, arguments, keyword):
    with pytest.raises(InputError, match=keyword):
        fake.decode(np.zeros((1, 4, 16, 16), np.float32), **arguments)


def test_invalid_latents_and_images_raise(fake):
    shape = (1, 4, 16, 16)
    not_numbers = (np.full(shape, "x"), np.full(shape, None), np.zeros(shape, np.complex64))
    for wrong in (np.zeros((4, 16, 16), np.float32), np.zeros((1, 3, 16, 16), np.float32), "latents", *not_numbers):
        with pytest.raises(InputError, match="latents must be"):
            fake.decode(wrong)
    with pytest.raises(InputError, match="output_type"):
        fake.decode(np.zeros((1, 4, 16, 16), np.float32), output_type="latent")
    with pytest.raises(InputError, match="image"):
        fake.encode([])
    with pytest.raises(CalotypeError, match="not finite"):
        fake.decode(np.full((1, 4, 16, 16), np.nan, np.float32))


@pytest.mark.parametrize("side", [64, 72, 200])
def test_tiles_of_an_encoder_are_placed_exactly(side):
    """A pooled ramp shows a tile that is off by a fraction of a latent."""
    array = np.broadcast_to(np.arange(512, dtype=np.float32), (1, 3, 512, 512))

    def pooled(part):
        return part.reshape(1, 3, part.shape[2] // 8, 8, part.shape[3] // 8, 8).mean(axis=(3, 5))

    np.testing.assert_allclose(tiled(pooled, array, side, 1 / 8), pooled(array), atol=1e-3)


def test_an_empty_batch_of_latents_raises(pipe):
    for how in ({}, {"sliced": True}, {"tile": 128}):
        with pytest.raises(InputError, match="latents must be"):
            pipe.decode(np.zeros((0, 4, 16, 16), np.float32), **how)
