"""Fits to the demonstration model: closer than other samplers with as many calls, in every task, and repeatable."""

import dataclasses

import numpy as np
import pytest

from calotype.errors import InputError, SamplerError
from calotype.export import FitSpec
from calotype.export.fit.spec import fit_spec_from
from calotype.export.judge.scenes import held_out_captions
from calotype.export.quality.metrics import psnr

SMALL = {"width": 64, "height": 64}  # for what does not depend on the quality: the model knows 128 pixels
SPEC = {"scheduler": "euler", "steps": 8, "calls": 5, "guidance": (4.0, 6.0), "images": False}
SPEC |= {"calibration": 12, "held_out": 4}
OPTIONS = {"scheduler": "euler", "steps": 8, "guidance_scale": 5.0}
PROMPTS = held_out_captions(1, 3, seed=900) + held_out_captions(2, 3, seed=901)


def fitted(pipe, **changes):
    """Fit a sampler, also if an earlier run of the tests left one in the cache."""
    (fit,) = pipe.fit(**SPEC | changes)
    return fit


@pytest.fixture(scope="module")
def fit(pipe):
    return fitted(pipe)


def images(pipe, **options):
    return pipe(PROMPTS, **OPTIONS | {"seed": list(range(6)), "output_type": "np"} | options).images


def closeness(got, expected):
    """Return the mean PSNR of the images in dB."""
    return np.mean([psnr(*pair) for pair in zip(got, expected, strict=True)])


@pytest.mark.parametrize("scale", [4.5, 5.0])
def test_held_out_images_are_closer_than_with_other_samplers(pipe, fit, scale):
    figures = fit.figures
    assert figures["prompts"] == 4
    assert {"the same sampler", "forecast"} <= set(figures["rivals"])
    assert max(each["p10"] for each in figures["rivals"].values()) < figures["fitted"]["p10"]
    full = images(pipe, guidance_scale=scale)  # of prompts that neither the fit nor its figures know
    same = closeness(images(pipe, guidance_scale=scale, steps=5), full)
    forecast = closeness(images(pipe, guidance_scale=scale, calls=5, calls_from="forecast"), full)
    assert closeness(images(pipe, guidance_scale=scale, calls=5), full) > max(same, forecast)


def test_the_second_fit_is_the_stored_one(pipe, fit, monkeypatch):
    monkeypatch.setattr(pipe._generator, "denoiser", lambda *_: pytest.fail("the network ran"))
    (again,) = pipe.fit(**SPEC)
    assert (again.key, again.settings, again.figures) == (fit.key, fit.settings, fit.figures)


def test_the_report_and_the_png_name_it(pipe, fit):
    result = pipe(PROMPTS[0], seed=1, calls=5, **OPTIONS)
    assert (result.report.network_calls, result.report.steps, result.report.notes) == (5, 8, ())
    assert "fitted" in result.report.sampler
    assert result.images[0].info["calls"] == "5"
    assert result.images[0].info["sampler"] == result.report.sampler


def test_an_image_of_a_batch_is_the_image_by_itself(pipe, fit):
    batch = pipe(PROMPTS[:2], seed=[4, 5], num_images=1, calls=5, output_type="np", **OPTIONS).images
    alone = pipe(PROMPTS[1], seed=5, calls=5, output_type="np", **OPTIONS).images
    np.testing.assert_allclose(batch[1], alone[0], atol=1e-4)
    assert len(pipe(PROMPTS[0], num_images=3, calls=5, **OPTIONS).images) == 3


def test_with_a_cache_interval(pipes, fit):
    result = pipes["openvino"](PROMPTS[0], seed=1, calls=5, cache_interval=2, **OPTIONS)
    assert result.report.network_calls == 5
    assert any("cache_interval" in note for note in result.report.notes)
    plain = pipes["openvino"](PROMPTS[0], seed=1, calls=5, **OPTIONS).images[0]
    assert 10 < psnr(np.asarray(result.images[0]), np.asarray(plain), peak=255) < 60


def test_an_ancestral_sampler_keeps_its_draws(pipe):
    small = {**SMALL, "scheduler": "euler-a", "steps": 4}
    ancestral = fitted(pipe, **small, calls=2, unchecked=True, calibration=4)
    rows = ancestral.parts["noise"].rows
    assert rows.shape[2] > 1 + 2 + 2  # its draws, also those of the calls left out
    assert np.abs(rows[0, -1, 1 + 2 : 1 + 2 + 3]).min() > 1e-4
    one, same, other = (pipe("a red ring", calls=2, seed=seed, **small).images[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(np.asarray(one), np.asarray(same))
    assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() > 8


def test_an_unchecked_fit_has_no_figures(pipe):
    unchecked = fitted(pipe, steps=4, calls=2, unchecked=True, calibration=1, **SMALL)
    assert "rivals" not in unchecked.figures
    assert pipe(PROMPTS[0], calls=2, **OPTIONS | SMALL | {"steps": 4}).report.network_calls == 2


def test_a_fit_that_a_rival_beats_is_refused(pipe, monkeypatch):
    from calotype.export.fit import compare

    monkeypatch.setattr(compare, "best_forecast", lambda full, calls: full)  # a rival without any error
    with pytest.raises(SamplerError, match="forecast") as raised:
        pipe.fit(**SPEC | SMALL | {"steps": 6})
    assert (raised.value.scheduler, raised.value.steps) == ("euler", 6)
    with pytest.raises(SamplerError, match="calotype fit"):
        pipe(PROMPTS[0], calls=5, **OPTIONS | {"steps": 6})


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
    "as many calls as steps": {"calls": 8},
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


def test_a_text_names_a_fit():
    spec = fit_spec_from("dpm++2m-karras:20:12")
    assert (spec.scheduler, spec.steps, spec.counts) == ("dpm++2m-karras", 20, (12,))


@pytest.mark.parametrize(
    "text", ["", "euler", "euler:20", "euler:20:", "euler:x:10", "euler:20:10:5", ":20:10", "euler:20:0"]
)
def test_a_wrong_text_is_refused(text):
    with pytest.raises(InputError):
        fit_spec_from(text)


def test_the_default_guidance_has_the_default_of_a_call():
    assert FitSpec().guidance[0] <= 5.0 <= FitSpec().guidance[1]
    assert {field.name for field in dataclasses.fields(FitSpec)} >= {"scheduler", "steps", "calls", "prompts"}
