"""Schedules that start from an image, use a mask, or end early: compared with diffusers' loops."""

import copy
import sys

import diffusers
import numpy as np
import pytest
import torch

from calotype.errors import SamplerError
from calotype.sampling.archive import from_bytes, to_bytes
from calotype.sampling.cache import sampler_for
from calotype.sampling.compile import compile_sampler, resolve_scheduler
from calotype.sampling.matrix import SamplerMatrix, SourceLatents
from calotype.sampling.schedule_range import FULL_SCHEDULE, ScheduleRange
from calotype.sampling.scheduler_loop import SchedulerSampler

SHAPE = (2, 4, 8, 8)  # [B, C, H, W]
NOISE, CLEAN = (np.random.default_rng(s).standard_normal(SHAPE).astype(np.float32) for s in (0, 1))
MASK = np.random.default_rng(2).random((2, 1, 8, 8)) < 0.5
CLIPPED = diffusers.DDIMScheduler(clip_sample=True, clip_sample_range=1.5)


def network(latents, timestep):
    return np.tanh(0.7 * latents + 0.2 * latents[:, ::-1] + timestep / 1000).astype(latents.dtype)


def draws():
    return np.random.default_rng(7).standard_normal((99, *SHAPE)).astype(np.float32)


def run_sampler(sampler, original):
    drawn = iter(draws())
    run = sampler.run(NOISE, lambda: next(drawn), original=original)
    for i, timestep in enumerate(sampler.timesteps):
        run.push(i, network(run.input(i), timestep))
    return run.latents()


def diffusers_loop(scheduler, steps, first, monkeypatch, *, noisy, inpaint_mask=None, calls=None):
    """The loops of StableDiffusionImg2ImgPipeline and StableDiffusionInpaintPipeline, in float64."""
    scheduler, drawn = copy.deepcopy(scheduler), iter(draws())
    module = sys.modules[type(scheduler).__module__]
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: torch.from_numpy(next(drawn)).double(), raising=False)
    noise, clean = torch.from_numpy(NOISE).double(), torch.from_numpy(CLEAN).double()
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps[first * scheduler.order :][:calls]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first * scheduler.order)
    x = scheduler.add_noise(clean, noise, times[:1].repeat(2)) if noisy else noise * scheduler.init_noise_sigma
    for i, t in enumerate(times):
        output = torch.from_numpy(network(scheduler.scale_model_input(x, t).numpy(), float(t)))
        x = scheduler.step(output, t, x, return_dict=False)[0]
        if inpaint_mask is not None:
            preserved = scheduler.add_noise(clean, noise, torch.tensor([times[i + 1]])) if i + 1 < len(times) else clean
            x = (1 - torch.from_numpy(inpaint_mask).double()) * preserved + torch.from_numpy(inpaint_mask).double() * x
    return x.numpy()


def near(got, expected):
    return np.abs(got - expected).max() <= 3e-6 * np.abs(expected).max()


NAMES = ["ddim", "ddpm", "dpm++2m-karras", "dpm++2m-sde", "euler", "euler-a", "heun", "lcm", "pndm", "unipc"]


@pytest.mark.parametrize("name", NAMES)
def test_starting_from_an_image(name, monkeypatch):
    sampler = compile_sampler(name, 10, schedule_range=ScheduleRange(origin="image", skipped=4))
    assert isinstance(sampler, SamplerMatrix)
    expected = diffusers_loop(resolve_scheduler(name), 10, 4, monkeypatch, noisy=True)
    assert near(run_sampler(sampler, SourceLatents(latents=CLEAN)), expected)


@pytest.mark.parametrize("noisy", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_mask_is_two_rows_and_a_select(name, noisy, monkeypatch):
    schedule_range = ScheduleRange(
        origin="image" if noisy else "noise", skipped=3 if noisy else 0, preserves_unmasked=True
    )
    sampler = compile_sampler(name, 8, schedule_range=schedule_range)
    expected = diffusers_loop(
        resolve_scheduler(name), 8, schedule_range.skipped, monkeypatch, noisy=noisy, inpaint_mask=MASK
    )
    got = run_sampler(sampler, SourceLatents(latents=CLEAN, inpaint_mask=MASK))
    assert near(got, expected)
    np.testing.assert_array_equal(np.where(MASK, CLEAN, got), CLEAN)  # the preserved area is exact
    again = from_bytes(to_bytes({"": sampler}), name="x")
    np.testing.assert_array_equal(run_sampler(again, SourceLatents(latents=CLEAN, inpaint_mask=MASK)), got)


@pytest.mark.parametrize("inpaint_mask", [None, MASK])
def test_a_scheduler_that_runs_itself_does_the_same(inpaint_mask, monkeypatch):
    schedule_range = ScheduleRange(origin="image", skipped=2, preserves_unmasked=inpaint_mask is not None)
    sampler = compile_sampler(CLIPPED, 6, schedule_range=schedule_range)
    assert isinstance(sampler, SchedulerSampler)
    expected = diffusers_loop(CLIPPED, 6, 2, monkeypatch, noisy=True, inpaint_mask=inpaint_mask)
    assert near(run_sampler(sampler, SourceLatents(latents=CLEAN, inpaint_mask=inpaint_mask)), expected)


@pytest.mark.parametrize("name", ["ddim", "euler", "unipc"])
def test_two_models_share_one_schedule_without_multistep_history(name):
    """Both parts of a schedule split at 0.6 give the full schedule. Multistep schedulers start again there."""
    full = compile_sampler(name, 10)
    first = compile_sampler(name, 10, schedule_range=ScheduleRange(end=0.6))
    second = compile_sampler(name, 10, schedule_range=ScheduleRange(origin="latents", begin=0.6))
    assert first.calls + second.calls == full.calls
    np.testing.assert_array_equal(np.concatenate([first.timesteps, second.timesteps]), full.timesteps)
    if name != "unipc":
        handed = run_sampler(first, None)
        assert near(run_sampler(second, SourceLatents(latents=handed)), run_sampler(full, None))


@pytest.mark.parametrize(
    "schedule_range", [ScheduleRange(end=0.0), ScheduleRange(origin="latents", begin=1.0), ScheduleRange(skipped=8)]
)
def test_a_range_without_steps_raises(schedule_range):
    with pytest.raises(SamplerError, match="no step"):
        compile_sampler("ddim", 8, schedule_range=schedule_range)


def test_an_image_is_required_exactly_if_the_range_starts_from_one():
    for scheduler in ("ddim", CLIPPED):
        full, partial = (
            compile_sampler(scheduler, 4, schedule_range=c) for c in (FULL_SCHEDULE, ScheduleRange(origin="image"))
        )
        with pytest.raises(SamplerError, match="does not take"):
            full.run(NOISE, lambda: NOISE, original=SourceLatents(latents=CLEAN))
        with pytest.raises(SamplerError, match="is None"):
            partial.run(NOISE, lambda: NOISE)
        with pytest.raises(SamplerError, match="latents"):
            partial.run(NOISE, lambda: NOISE, original=SourceLatents(latents=CLEAN[:1]))
        with pytest.raises(SamplerError, match="mask"):
            partial.run(NOISE, lambda: NOISE, original=SourceLatents(latents=CLEAN, inpaint_mask=MASK))


def test_each_range_has_its_own_key():
    spec, _ = sampler_for("ddim", {}, 4)
    keys = {
        spec.fingerprint(4, c)
        for c in (
            FULL_SCHEDULE,
            ScheduleRange(preserves_unmasked=True),
            ScheduleRange(skipped=1),
            ScheduleRange(end=0.5),
        )
    }
    assert len(keys) == 4
    assert spec.fingerprint(4, ScheduleRange()) == spec.fingerprint(4)
