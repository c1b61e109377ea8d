"""Schedules that set out from a picture, keep part of it under a mask, or stop on the way: against diffusers' loops."""

import copy
import sys

import diffusers
import numpy as np
import pytest
import torch

from calotype.errors import SamplerError
from calotype.sampling.cache import sampler_for
from calotype.sampling.compile import compile_sampler, resolve_scheduler
from calotype.sampling.matrix import SamplerMatrix, SourceLatents
from calotype.sampling.schedule_range import FULL_SCHEDULE, ScheduleRange
from calotype.sampling.scheduler_loop import SchedulerSampler

SHAPE = (2, 4, 8, 8)  # [B, C, H, W]
NOISE, CLEAN = (np.random.default_rng(s).standard_normal(SHAPE).astype(np.float32) for s in (0, 1))
REPAINT = np.random.default_rng(2).random((2, 1, 8, 8)) < 0.5
CLIPPED = diffusers.DDIMScheduler(clip_sample=True, clip_sample_range=1.5)

# diffusers gives tensors of torch to functions of numpy, about which numpy 2 has its doubts.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def network(latents, timestep):
    return np.tanh(0.7 * latents + 0.2 * latents[:, ::-1] + timestep / 1000).astype(latents.dtype)


def draws():
    return np.random.default_rng(7).standard_normal((99, *SHAPE)).astype(np.float32)


def painted(sampler, original):
    drawn = iter(draws())
    run = sampler.run(NOISE, lambda: next(drawn), original=original)
    for i, timestep in enumerate(sampler.timesteps):
        run.push(i, network(run.input(i), timestep))
    return run.latents()


def elder(scheduler, steps, first, monkeypatch, *, noisy, inpaint_mask=None, calls=None):
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
            kept = scheduler.add_noise(clean, noise, torch.tensor([times[i + 1]])) if i + 1 < len(times) else clean
            x = (1 - torch.from_numpy(inpaint_mask).double()) * kept + torch.from_numpy(inpaint_mask).double() * x
    return x.numpy()


def near(got, wanted):
    return np.abs(got - wanted).max() <= 3e-6 * np.abs(wanted).max()


NAMES = ["ddim", "ddpm", "dpm++2m-karras", "dpm++2m-sde", "euler", "euler-a", "heun", "lcm", "pndm", "unipc"]


@pytest.mark.parametrize("name", NAMES)
def test_setting_out_from_a_picture(name, monkeypatch):
    sampler = compile_sampler(name, 10, course=ScheduleRange(origin="image", skipped=4))
    assert isinstance(sampler, SamplerMatrix)
    wanted = elder(resolve_scheduler(name), 10, 4, monkeypatch, noisy=True)
    assert near(painted(sampler, SourceLatents(latents=CLEAN)), wanted)


@pytest.mark.parametrize("noisy", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_mask_is_two_rows_and_a_select(name, noisy, monkeypatch):
    course = ScheduleRange(origin="image" if noisy else "noise", skipped=3 if noisy else 0, preserves_unmasked=True)
    sampler = compile_sampler(name, 8, course=course)
    wanted = elder(resolve_scheduler(name), 8, course.skipped, monkeypatch, noisy=noisy, inpaint_mask=REPAINT)
    got = painted(sampler, SourceLatents(latents=CLEAN, inpaint_mask=REPAINT))
    assert near(got, wanted)
    np.testing.assert_array_equal(np.where(REPAINT, CLEAN, got), CLEAN)  # what is kept is kept to the last bit
    again = SamplerMatrix.from_bytes(sampler.to_bytes())
    np.testing.assert_array_equal(painted(again, SourceLatents(latents=CLEAN, inpaint_mask=REPAINT)), got)


@pytest.mark.parametrize("repaint", [None, REPAINT])
def test_a_scheduler_that_runs_itself_does_the_same(inpaint_mask, monkeypatch):
    course = ScheduleRange(origin="image", skipped=2, preserves_unmasked=inpaint_mask is not None)
    sampler = compile_sampler(CLIPPED, 6, course=course)
    assert isinstance(sampler, SchedulerSampler)
    wanted = elder(CLIPPED, 6, 2, monkeypatch, noisy=True, inpaint_mask=inpaint_mask)
    assert near(painted(sampler, SourceLatents(latents=CLEAN, inpaint_mask=inpaint_mask)), wanted)


@pytest.mark.parametrize("name", ["ddim", "euler", "unipc"])
def test_handing_on_and_taking_up_is_one_walk_of_those_without_memory(name):
    """What is left of a schedule at 0.6 is what was not done of it; multistep schedulers begin anew there."""
    whole = compile_sampler(name, 10)
    first = compile_sampler(name, 10, course=ScheduleRange(end=0.6))
    second = compile_sampler(name, 10, course=ScheduleRange(origin="latents", begin=0.6))
    assert first.calls + second.calls == whole.calls
    np.testing.assert_array_equal(np.concatenate([first.timesteps, second.timesteps]), whole.timesteps)
    if name != "unipc":
        handed = painted(first, None)
        assert near(painted(second, SourceLatents(latents=handed)), painted(whole, None))


@pytest.mark.parametrize(
    "course", [ScheduleRange(end=0.0), ScheduleRange(origin="latents", begin=1.0), ScheduleRange(skipped=8)]
)
def test_nothing_left_of_a_schedule_is_told(course):
    with pytest.raises(SamplerError, match="none of them is left"):
        compile_sampler("ddim", 8, course=course)


def test_a_picture_where_none_is_wanted_and_none_where_one_is():
    for scheduler in ("ddim", CLIPPED):
        whole, partial = (
            compile_sampler(scheduler, 4, course=c) for c in (FULL_SCHEDULE, ScheduleRange(origin="image"))
        )
        with pytest.raises(SamplerError, match="takes none"):
            whole.run(NOISE, lambda: NOISE, original=SourceLatents(latents=CLEAN))
        with pytest.raises(SamplerError, match="there is none"):
            partial.run(NOISE, lambda: NOISE)
        with pytest.raises(SamplerError, match="picture's latents has shape"):
            partial.run(NOISE, lambda: NOISE, original=SourceLatents(latents=CLEAN[:1]))
        with pytest.raises(SamplerError, match="not compiled for a mask"):
            partial.run(NOISE, lambda: NOISE, original=SourceLatents(latents=CLEAN, inpaint_mask=REPAINT))


def test_a_course_has_a_key_of_its_own():
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
