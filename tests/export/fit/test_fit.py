"""Fits to the demonstration model: closer than other samplers with as many calls, in every task, and repeatable."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from calotype.errors import InputError, SamplerError
from calotype.export import FitSpec
from calotype.export.judge.scenes import held_out_captions
from calotype.export.quality.metrics import psnr
from calotype.files.cache import FITS

SMALL = {"width": 64, "height": 64}  # for what does not depend on the quality: the model knows 128 pixels
SPEC = {"scheduler": "euler", "steps": 6, "calls": 4, "guidance": (3.0, 7.0), "calibration": 4, "held_out": 4}
OPTIONS = {"scheduler": "euler", "steps": 6, "guidance_scale": 5.0}
PROMPTS = held_out_captions(1, 2, seed=900) + held_out_captions(2, 2, seed=901)


def fitted(pipe, **changes):
    """Fit a sampler, also if an earlier run of the tests left one in the cache."""
    (fit,) = pipe.fit(**SPEC | {"unchecked": True, "images": False} | changes)
    for path in FITS.root.glob(f"{fit.key}*"):
        path.unlink()
    return pipe.fit(**SPEC | changes)[0]


@pytest.fixture(scope="module")
def fit(pipe):
    return fitted(pipe)


def images(pipe, **options):
    return pipe(PROMPTS, **OPTIONS | {"seed": list(range(4)), "output_type": "np"} | options).images


def scene():
    """Return a picture that no prompt describes, and a mask of its left half."""
    side = np.linspace(0, 255, 128, dtype=np.uint8)
    pixels = np.stack(np.broadcast_arrays(side[:, None], side[None], side[::-1, None]), axis=-1)
    return {"image": Image.fromarray(pixels)}, Image.fromarray(
        np.repeat(np.array([[255, 0]], np.uint8), 128, 0)
    ).resize((128, 128), Image.Resampling.NEAREST)


def test_held_out_images_are_closer_than_with_other_samplers(pipe, fit):
    figures = fit.figures
    assert figures["prompts"] == 4
    assert {"the same sampler", "forecast"} <= set(figures["rivals"])
    assert max(each["p10"] for each in figures["rivals"].values()) < figures["fitted"]["p10"]
    full = images(pipe)
    same, fewer = psnr(images(pipe, steps=4), full), psnr(images(pipe, calls=4), full)
    assert fewer > same + 2, "of prompts that neither the fit nor its figures know"


@pytest.mark.parametrize("scale", [3.5, 6.5])
def test_it_holds_in_its_range_of_guidance(pipe, fit, scale):
    full = images(pipe, guidance_scale=scale)
    same = psnr(images(pipe, steps=4, guidance_scale=scale), full)
    assert psnr(images(pipe, calls=4, guidance_scale=scale), full) > same


def test_the_second_fit_is_the_stored_one(pipe, fit, monkeypatch):
    monkeypatch.setattr(pipe._generator, "denoiser", lambda *_: pytest.fail("the network ran"))
    (again,) = pipe.fit(**SPEC)
    assert (again.key, again.settings, again.figures) == (fit.key, fit.settings, fit.figures)


def test_the_report_and_the_png_name_it(pipe, fit):
    result = pipe(PROMPTS[0], seed=1, calls=4, **OPTIONS)
    assert (result.report.network_calls, result.report.steps, result.report.notes) == (4, 6, ())
    assert "fitted" in result.report.sampler
    assert result.images[0].info["calls"] == "4"
    assert result.images[0].info["sampler"] == result.report.sampler


@pytest.mark.parametrize(("strength", "calls"), [(0.5, 2), (0.9, 3)])
def test_image_to_image(pipe, fit, strength, calls):
    options = {**scene()[0], "strength": strength}
    full = images(pipe, **options)
    same = images(pipe, **options | {"steps": 4})
    result = pipe(PROMPTS, calls=4, seed=list(range(4)), output_type="np", **OPTIONS | options)
    assert result.report.network_calls == calls
    assert not [note for note in result.report.notes if "calls" in note]
    assert psnr(result.images, full) > psnr(same, full)


@pytest.mark.parametrize("strength", [0.7, 1.0])
def test_inpainting_preserves_the_same_area(pipe, fit, strength):
    image, mask = scene()
    options = {**image, "mask_image": mask, "strength": strength, "output_type": "latent"}
    full, fewer = images(pipe, **options), images(pipe, calls=4, **options)
    kept = np.s_[:, :, :, full.shape[-1] // 2 :]
    np.testing.assert_array_equal(fewer[kept], full[kept])
    assert np.abs(fewer - full).max() > 1e-3
    assert np.square(fewer - full).mean() < np.square(images(pipe, **options | {"steps": 4}) - full).mean() * 1.5


def test_an_image_of_a_batch_is_the_image_by_itself(pipe, fit):
    batch = pipe(PROMPTS[:2], seed=[4, 5], num_images=1, calls=4, output_type="np", **OPTIONS).images
    alone = pipe(PROMPTS[1], seed=5, calls=4, output_type="np", **OPTIONS).images
    np.testing.assert_allclose(batch[1], alone[0], atol=1e-4)
    assert len(pipe(PROMPTS[0], num_images=3, calls=4, **OPTIONS).images) == 3


def test_with_a_cache_interval(pipes, fit):
    result = pipes["openvino"](PROMPTS[0], seed=1, calls=4, cache_interval=2, **OPTIONS)
    assert result.report.network_calls == 4
    assert any("cache_interval" in note for note in result.report.notes)
    plain = pipes["openvino"](PROMPTS[0], seed=1, calls=4, **OPTIONS).images[0]
    assert 10 < psnr(np.asarray(result.images[0]), np.asarray(plain), peak=255) < 60


def test_an_ancestral_sampler_keeps_its_draws(pipe):
    ancestral = fitted(pipe, scheduler="euler-a", unchecked=True, images=False)
    full, fewer = (images(pipe, scheduler="euler-a", calls=calls) for calls in (None, 4))
    assert psnr(fewer, full) > psnr(images(pipe, scheduler="euler-a", steps=4), full)
    rows = ancestral.parts["noise"].rows
    assert rows.shape[2] > 1 + 4 + 4  # its draws, also those of the calls left out
    assert np.abs(rows[0, -1, 1 + 4 :]).min() > 1e-4


def test_an_unchecked_fit_has_no_figures(pipe):
    unchecked = fitted(pipe, steps=4, calls=2, unchecked=True, images=False, **SMALL)
    assert "rivals" not in unchecked.figures
    assert pipe(PROMPTS[0], calls=2, **OPTIONS | SMALL | {"steps": 4}).report.network_calls == 2


def test_a_fit_that_a_rival_beats_is_refused(pipe, monkeypatch):
    from calotype.export.fit import compare

    monkeypatch.setattr(compare, "best_forecast", lambda full, calls: full)  # a rival without any error
    with pytest.raises(SamplerError, match="forecast") as raised:
        pipe.fit(**SPEC | SMALL | {"steps": 5, "images": False})
    assert (raised.value.scheduler, raised.value.steps) == ("euler", 5)
    with pytest.raises(SamplerError, match="calotype fit"):
        pipe(PROMPTS[0], calls=4, **OPTIONS | {"steps": 5})


REFUSED = {
    "a sampler of few steps": {"scheduler": "lcm"},
    "an unknown scheduler": {"scheduler": "eulr"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_some_schedulers_are_refused(pipe, name):
    with pytest.raises(SamplerError):
        pipe.fit(**SPEC | REFUSED[name])


def test_a_scheduler_that_is_no_matrix_is_refused(pipe):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(pipe.plan.scheduler, thresholding=True)
    with pytest.raises(SamplerError, match="Cannot fit"):
        pipe.fit(**SPEC | {"scheduler": scheduler})


WRONG = {
    "no calls": {"calls": 0},
    "no numbers": {"calls": ()},
    "as many calls as steps": {"calls": 6},
    "one of several": {"calls": (3, 9)},
    "one step": {"steps": 1},
    "a text": {"calls": "3"},
    "a range upside down": {"guidance": (7.0, 3.0)},
    "not a number": {"guidance": (float("nan"), 3.0)},
    "one scale": {"guidance": (5.0,)},
    "no prompts": {"prompts": []},
    "no calibration": {"calibration": 0},
    "an odd size": {"height": 100},
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options_raise_before_any_work(pipe, name, monkeypatch):
    monkeypatch.setattr(pipe._generator, "denoiser", lambda *_: pytest.fail("the network ran"))
    with pytest.raises(InputError):
        pipe.fit(**SPEC | {"scheduler": "ddim"} | WRONG[name])


def test_an_unknown_option_raises(pipe):
    with pytest.raises((InputError, TypeError), match="promts"):
        pipe.fit(promts=["a"])


def test_the_default_guidance_has_the_default_of_a_call():
    assert FitSpec().guidance[0] <= 5.0 <= FitSpec().guidance[1]
    assert {field.name for field in dataclasses.fields(FitSpec)} >= {"scheduler", "steps", "calls", "prompts"}
