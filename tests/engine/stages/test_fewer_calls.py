"""Which sampler a call runs: a fit where it holds, and elsewhere the full schedule with a note that says why."""

import math

import numpy as np
import pytest
from diffusers import DDIMScheduler
from PIL import Image

import calotype
from calotype.errors import InputError, SamplerError
from calotype.images.png import settings_of
from calotype.sampling.compile import compile_sampler
from calotype.sampling.fewer_calls import forecast
from calotype.stages.controls import span_of
from tests.helpers.fits import fit_for, store
from tests.helpers.tiny_models import save_lora

PROMPT = "a red ring"
OPTIONS = {"scheduler": "euler", "steps": 4, "seed": 3, "guidance_scale": 5.0}
IMAGE = Image.new("RGB", (128, 128), (200, 30, 60))


@pytest.fixture(scope="module")
def pipe():
    return calotype.load("demo", backend="fake")


@pytest.fixture(scope="module")
def real_pipe():
    """A pipeline that takes LoRAs, of its own because a test sets some. Loaded before the cache is an empty one."""
    return calotype.load("demo", backend="onnxruntime")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A cache for each test."""
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path / "home"))


def chosen(pipe, **options):
    """Return the report of a call, and the settings in its PNG."""
    result = pipe(PROMPT, **OPTIONS | options)
    return result.report, result.images[0].info


def test_without_calls_the_full_schedule_runs(pipe):
    store(fit_for(pipe.plan))
    report, settings = chosen(pipe)
    assert (report.network_calls, report.sampler, report.notes) == (4, "euler", ())
    assert "calls" not in settings


def test_a_stored_fit_runs_and_is_named(pipe):
    store(fit_for(pipe.plan))
    report, settings = chosen(pipe, calls=2)
    assert (report.network_calls, report.steps, report.notes) == (2, 4, ())
    assert settings["calls"] == "2"
    assert settings["sampler"] == report.sampler != "euler"
    assert "fitted" in report.sampler


def test_without_a_fit_the_error_names_the_command(pipe):
    store(fit_for(pipe.plan, steps=5))
    store(fit_for(pipe.plan, calls=3))
    with pytest.raises(SamplerError, match="calotype fit demo --scheduler euler --steps 4 --calls 2") as raised:
        chosen(pipe, calls=2)
    assert (raised.value.scheduler, raised.value.steps) == ("euler", 4)
    with pytest.raises(SamplerError, match="calotype fit demo"):
        chosen(pipe, calls=2, scheduler="ddim")


def test_a_damaged_fit_is_no_fit(pipe, tmp_path):
    fit = store(fit_for(pipe.plan))
    (path,) = (tmp_path / "home" / "fits").iterdir()
    assert path.name.startswith(fit.key)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SamplerError, match="calotype fit"):
        chosen(pipe, calls=2)


def test_a_forecast_needs_no_fit(pipe):
    report, settings = chosen(pipe, calls=2, calls_from="forecast")
    assert (report.network_calls, report.notes) == (2, ())
    assert "forecast" in report.sampler
    assert (settings["calls"], settings["calls_from"]) == ("2", "forecast")
    report, _ = chosen(pipe, calls=2, calls_from="forecast", image=IMAGE, strength=0.5)
    assert report.network_calls == 1  # its share of the two calls


def test_min_psnr_takes_the_fewest_calls_inside(pipe):
    for calls, p10 in ((1, 20.0), (2, 35.0), (3, 45.0)):
        store(fit_for(pipe.plan, calls=calls, p10=p10))
    for decibels, calls in ((10, 1), (20, 1), (30, 2), (45, 3)):
        report, settings = chosen(pipe, min_psnr=decibels)
        assert (report.network_calls, settings["calls"]) == (calls, str(calls))
        assert "min_psnr" not in settings


def test_min_psnr_that_no_fit_reaches_runs_all_calls(pipe):
    with pytest.raises(SamplerError, match="calotype fit demo"):
        chosen(pipe, min_psnr=30)
    store(fit_for(pipe.plan, p10=25.0))
    report, settings = chosen(pipe, min_psnr=30)
    assert report.network_calls == 4
    assert "calls" not in settings
    assert ["min_psnr" in note for note in report.notes] == [True]


NOT_COVERED = {
    "guidance above": ({"guidance_scale": 9.5}, "guidance_scale"),
    "guidance below": ({"guidance_scale": 1.5}, "guidance_scale"),
    "no guidance": ({"guidance_scale": 1.0}, "guidance"),
    "guidance_rescale": ({"guidance_rescale": 0.5}, "guidance_rescale"),
    "guidance_interval": ({"guidance_interval": (0.2, 0.8)}, "guidance_interval"),
    "another strength": ({"image": IMAGE, "strength": 0.5}, "strength"),
    "denoising_end": ({"denoising_end": 0.5, "output_type": "latent"}, "handoff"),
}


@pytest.mark.parametrize("name", NOT_COVERED)
def test_where_a_fit_does_not_hold_all_calls_run_with_a_note(pipe, name):
    options, word = NOT_COVERED[name]
    store(fit_for(pipe.plan))
    expected = pipe(PROMPT, **OPTIONS | options)
    result = pipe(PROMPT, calls=2, **OPTIONS | options)
    assert (result.report.network_calls, result.report.sampler) == (expected.report.network_calls, "euler")
    (note,) = set(result.report.notes) - set(expected.report.notes)
    assert word in note
    np.testing.assert_array_equal(np.asarray(result.images[0]), np.asarray(expected.images[0]))
    if options.get("output_type") != "latent":
        assert "calls" not in result.images[0].info


def test_an_image_starts_a_fit_of_its_strength(pipe):
    store(fit_for(pipe.plan, skipped=(1,)))
    report, settings = chosen(pipe, calls=2, image=IMAGE, strength=0.75)
    assert (report.network_calls, settings["calls"]) == (2, "2")
    assert not report.notes


def test_another_lora_is_not_fitted(real_pipe, demo_folder, tmp_path):
    pipe, lora = real_pipe, save_lora(demo_folder, tmp_path / "a.safetensors")
    pipe.set_lora(lora)
    size = {"width": 64, "height": 64}
    store(fit_for(pipe.plan, **size))
    report, settings = chosen(pipe, calls=2, **size)
    assert (report.network_calls, "calls" in settings) == (4, False)
    assert any("LoRA" in note for note in report.notes)
    (digest,) = (each.digest for each in pipe._generator.loras.loras)
    store(fit_for(pipe.plan, loras=[f"{digest}:1.0"], **size))
    report, settings = chosen(pipe, calls=2, **size)
    assert (report.network_calls, settings["calls"]) == (2, "2")
    pipe.set_lora((lora, 0.5))
    assert chosen(pipe, calls=2, **size)[0].network_calls == 4
    pipe.set_lora(None)
    assert chosen(pipe, calls=2, **size)[0].network_calls == 2


def test_another_size_runs_with_a_note(pipe):
    store(fit_for(pipe.plan))
    report, settings = chosen(pipe, calls=2, width=64)
    assert (report.network_calls, settings["calls"]) == (2, "2")
    assert ["128 x 128" in note for note in report.notes] == [True]


WRONG = {
    "no calls": {"calls": 0},
    "negative": {"calls": -2},
    "more calls than a schedule has": {"calls": 9},
    "a fraction": {"calls": 2.5},
    "a text": {"calls": "2"},
    "a truth": {"calls": True},
    "an infinite number": {"calls": math.inf},
    "another source": {"calls": 2, "calls_from": "guess"},
    "a source that is a list": {"calls": 2, "calls_from": ["fit"]},
    "a forecast without calls": {"calls_from": "forecast"},
    "a forecast of more calls than the schedule": {"calls": 5, "calls_from": "forecast"},
    "a forecast with min_psnr": {"min_psnr": 30, "calls_from": "forecast"},
    "both": {"calls": 2, "min_psnr": 30},
    "not a number": {"min_psnr": math.nan},
    "a negative bound": {"min_psnr": -1},
    "a large bound": {"min_psnr": 101},
    "a bound of text": {"min_psnr": "30"},
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_raise_before_any_work(pipe, name):
    store(fit_for(pipe.plan))
    runs = sum(each.runner.calls for each in pipe._components.opened)
    with pytest.raises(InputError) as raised:
        pipe(PROMPT, **OPTIONS | WRONG[name])
    assert raised.value.argument in ("calls", "calls_from", "min_psnr")
    assert sum(each.runner.calls for each in pipe._components.opened) == runs


def test_calls_above_the_schedule_have_no_fit(pipe):
    with pytest.raises((SamplerError, InputError), match="calls"):
        chosen(pipe, calls=5)


def test_a_scheduler_that_is_no_matrix_has_no_fewer_calls(pipe):
    scheduler = DDIMScheduler.from_config(pipe.plan.scheduler, thresholding=True)
    for options in ({"calls_from": "forecast"}, {}):
        with pytest.raises(SamplerError, match="matrix"):
            chosen(pipe, scheduler=scheduler, calls=2, **options)


def test_a_stream_and_latents_run_the_fit(pipe):
    store(fit_for(pipe.plan))
    latents = pipe(PROMPT, calls=2, **OPTIONS, output_type="latent").images
    events = list(pipe.stream(PROMPT, calls=2, **OPTIONS))
    assert len(events) == 2
    assert (events[-1].step, events[-1].total) == (2, 2)
    images = events[-1].result.images
    np.testing.assert_array_equal(np.asarray(pipe.decode(latents)[0]), np.asarray(images[0]))


def test_the_png_of_a_fit_can_be_read(pipe, tmp_path):
    store(fit_for(pipe.plan))
    pipe(PROMPT, calls=2, **OPTIONS).images[0].save(tmp_path / "a.png")
    assert settings_of(tmp_path / "a.png")["calls"] == "2"


def test_a_call_knows_its_place_in_the_full_schedule():
    full = compile_sampler("euler", 8, base_config={})
    fewer = forecast(full, [0, 3, 7])
    assert [span_of(fewer, i) for i in range(3)] == [(0, 1 / 8), (3 / 8, 4 / 8), (7 / 8, 1)]
    assert span_of(full, 3) == (3 / 8, 4 / 8)
