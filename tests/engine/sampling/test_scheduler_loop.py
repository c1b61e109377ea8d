"""Runs of a schedule: the matrix in float32, and the scheduler itself if it is not linear."""

import copy
import sys
import threading

import diffusers
import numpy as np
import pytest
import torch

from calotype.errors import SamplerError
from calotype.sampling.compile import compile_sampler, resolve_scheduler
from calotype.sampling.matrix import SamplerMatrix
from calotype.sampling.scheduler_loop import SchedulerSampler, served_draws

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPE = (2, 4, 8, 8)  # [B, C, H, W]
NOISE = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


class Draws:
    """Noise for the draws, one stream for each image, and the number of draws."""

    def __init__(self, images=(0, 1)):
        self.streams = [np.random.default_rng(100 + image) for image in images]
        self.count = 0

    def __call__(self):
        self.count += 1
        return np.stack([stream.standard_normal(SHAPE[1:]).astype(np.float32) for stream in self.streams])


def network(latents, timestep):
    return np.tanh(0.7 * latents + 0.2 * latents[:, ::-1] + timestep / 1000).astype(latents.dtype)


def run_sampler(sampler, noise=NOISE, draw=None, seeds=None):
    run = sampler.run(noise, draw or Draws(), seeds=seeds)
    for i, timestep in enumerate(sampler.timesteps):
        run.push(i, network(run.input(i), timestep))
    return run.latents()


def own_loop(scheduler, steps, noise, draw, monkeypatch, dtype=np.float32):
    """The loop of a diffusers pipeline."""
    scheduler, module = copy.deepcopy(scheduler), sys.modules[type(scheduler).__module__]

    def drawn(shape, generator=None, device=None, dtype=None, layout=None):
        return torch.from_numpy(draw()).to(dtype)

    monkeypatch.setattr(module, "randn_tensor", drawn, raising=False)
    scheduler.set_timesteps(steps)
    latents = torch.from_numpy(noise.astype(dtype)) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, timestep)
        output = torch.from_numpy(network(scaled.numpy(), float(timestep)))
        latents = scheduler.step(output, timestep, latents).prev_sample
    return latents.numpy()


@pytest.mark.parametrize("name", ["ddim", "euler", "euler-a", "dpm++2m-sde", "heun", "lcm", "unipc-karras"])
def test_a_matrix_run_is_right_to_float32(name, monkeypatch):
    sampler = compile_sampler(name, 12)
    assert isinstance(sampler, SamplerMatrix)
    assert sampler.reason is None
    got = run_sampler(sampler)
    expected = own_loop(resolve_scheduler(name), 12, NOISE, Draws(), monkeypatch, dtype=np.float64)
    assert got.dtype == np.float32
    assert np.abs(got - expected).max() <= 3e-6 * np.abs(expected).max()


def test_draws_come_in_order_when_first_needed():
    sampler, draw = compile_sampler("euler-a", 5), Draws()
    run, seen = sampler.run(NOISE, draw), []
    for i in range(sampler.calls):
        output = network(run.input(i), sampler.timesteps[i])
        seen.append(draw.count)
        run.push(i, output)
    run.latents()
    assert sampler.draws == 5
    assert seen == [0, 1, 2, 3, 4]
    assert draw.count == 5  # also the last one, whose weight is zero, as in diffusers


def test_the_caller_may_change_an_input():
    for scheduler in ("euler", diffusers.DDIMScheduler(clip_sample=True)):
        run = compile_sampler(scheduler, 3).run(NOISE, Draws())
        before = run.input(0).copy()
        run.input(0)[:] = 0
        np.testing.assert_array_equal(run.input(0), before)


@pytest.mark.parametrize("scheduler", ["euler", diffusers.DDIMScheduler(clip_sample=True)])
def test_calls_out_of_order_and_wrong_shapes_raise(scheduler):
    run = compile_sampler(scheduler, 2).run(NOISE, lambda: NOISE[:1])
    for wrong in (
        lambda: run.input(1),
        lambda: run.push(1, NOISE),
        lambda: run.preview(0),
        lambda: run.latents(),
        lambda: run.push(0, NOISE[:1]),
    ):
        with pytest.raises(SamplerError):
            wrong()
    run.push(0, NOISE)
    run.preview(0)
    run.push(1, NOISE)
    run.latents()
    with pytest.raises(SamplerError, match=r"input\(2\)"):
        run.input(2)


def test_a_draw_of_another_shape_raises():
    for scheduler in ("euler-a", diffusers.DDPMScheduler(clip_sample=True)):
        with pytest.raises(SamplerError, match="noise draw"):
            run_sampler(compile_sampler(scheduler, 3), draw=lambda: NOISE[:, :1])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    ("class_name", "config", "tolerance"),
    [
        ("DDIMScheduler", {**BETAS, "clip_sample": False}, 1e-5),
        ("DDIMScheduler", {**BETAS, "clip_sample": True}, 1e-5),
        ("EulerDiscreteScheduler", {**BETAS, "use_karras_sigmas": True}, 1e-4),
        ("EDMEulerScheduler", {}, 1e-4),
    ],
)
def test_a_preview_equals_the_schedulers_estimate(class_name, config, tolerance, kind):
    if (class_name, kind) == ("EDMEulerScheduler", "sample"):
        pytest.skip("diffusers knows no such network")
    scheduler = getattr(diffusers, class_name)(**config, prediction_type=kind)
    sampler = compile_sampler(scheduler, 6)
    scheduler.register_to_config(**({"clip_sample": False} if "clip_sample" in scheduler.config else {}))
    scheduler.set_timesteps(6)
    run = sampler.run(NOISE, Draws())
    for i, timestep in enumerate(scheduler.timesteps):
        latents = run.input(i)
        output = network(latents, float(timestep))
        run.push(i, output)
        # `step` takes the latents before they are scaled.
        scale = scheduler.scale_model_input(torch.ones(1), timestep)
        step = scheduler.step(torch.from_numpy(output), timestep, torch.from_numpy(latents) / scale)
        expected = step.pred_original_sample.numpy()
        assert np.abs(run.preview(i) - expected).max() <= tolerance * np.abs(expected).max()


FALLBACKS = {
    "ddim, clipped": (diffusers.DDIMScheduler(**BETAS, clip_sample=True), "clips"),
    "ddpm, clipped": (diffusers.DDPMScheduler(**BETAS, clip_sample=True), "clips"),
    "lcm, clipped": (diffusers.LCMScheduler(**BETAS, clip_sample=True), "clips"),
    "ddim, thresholded": (diffusers.DDIMScheduler(**BETAS, clip_sample=False, thresholding=True), "thresholds"),
    "dpm++, thresholded": (diffusers.DPMSolverMultistepScheduler(**BETAS, thresholding=True), "thresholds"),
    "unipc, thresholded": (diffusers.UniPCMultistepScheduler(**BETAS, thresholding=True), "thresholds"),
    "sde, thresholded": (
        diffusers.DPMSolverMultistepScheduler(**BETAS, thresholding=True, algorithm_type="sde-dpmsolver++"),
        "thresholds",
    ),
}


@pytest.mark.parametrize("case", FALLBACKS)
def test_schedulers_that_are_not_linear_run_themselves(case, monkeypatch):
    scheduler, word = FALLBACKS[case]
    sampler = compile_sampler(scheduler, 6)
    assert isinstance(sampler, SchedulerSampler)
    assert word in sampler.reason
    got = run_sampler(sampler)
    for i in range(len(NOISE)):  # one image at a time: a threshold must not depend on the others
        expected = own_loop(scheduler, 6, NOISE[i : i + 1], Draws([i]), monkeypatch)
        assert np.abs(got[i : i + 1] - expected).max() <= 1e-6 * np.abs(expected).max()


class Own(diffusers.DDIMScheduler):
    """Draws without `randn_tensor`: from torch's global generator, and from the one passed in."""

    def step(self, model_output, timestep, sample, generator=None):
        more = torch.randn(sample.shape, generator=generator) + torch.randn_like(sample)
        return (super().step(model_output, timestep, sample).prev_sample + 0.1 * more,)


@pytest.mark.parametrize("seeds", [None, (5, 6)])
def test_noise_drawn_without_randn_tensor_is_a_function_of_the_seed(seeds):
    sampler = compile_sampler(Own(clip_sample=False), 4)
    assert "randn_tensor" in sampler.reason
    state = torch.get_rng_state()
    both = run_sampler(sampler, seeds=seeds)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    np.testing.assert_array_equal(run_sampler(sampler, seeds=seeds), both)
    single = run_sampler(sampler, noise=NOISE[1:], seeds=seeds and seeds[1:])
    np.testing.assert_allclose(single, both[1:], rtol=1e-5, atol=1e-6)
    with pytest.raises(SamplerError, match="3 seeds"):
        sampler.run(NOISE, Draws(), seeds=(1, 2, 3))


@pytest.mark.filterwarnings("ignore:Should have ta>=t0:UserWarning")  # torchsde's own rounding
def test_a_brownian_tree_uses_the_seed_of_each_image(monkeypatch):
    pytest.importorskip("torchsde")
    scheduler = diffusers.DPMSolverSDEScheduler(**BETAS, noise_sampler_seed=7)
    sampler = compile_sampler(scheduler, 5)
    assert "Brownian tree" in sampler.reason
    expected = own_loop(scheduler, 5, NOISE[1:], None, monkeypatch)
    assert np.abs(run_sampler(sampler)[1:] - expected).max() <= 1e-5 * np.abs(expected).max()
    free = compile_sampler("dpm++sde-karras", 5)
    np.testing.assert_allclose(run_sampler(free, NOISE[1:], seeds=(2,)), run_sampler(free, seeds=(1, 2))[1:], rtol=1e-4)
    assert np.abs(run_sampler(free, seeds=(1, 2)) - run_sampler(free, seeds=(3, 4))).max() > 0.1


def test_randn_tensor_is_replaced_on_one_thread_and_restored():
    from diffusers.schedulers import scheduling_ddpm as module

    original, elsewhere = module.randn_tensor, []
    with (
        pytest.raises(RuntimeError, match="fails"),
        served_draws(diffusers.DDPMScheduler(), lambda shape: torch.ones(shape)),
    ):
        assert module.randn_tensor((2,), dtype=torch.float64).tolist() == [1, 1]
        other = threading.Thread(target=lambda: elsewhere.append(module.randn_tensor((1000,))))
        other.start()
        other.join()
        raise RuntimeError("fails")
    assert module.randn_tensor is original
    assert 0.5 < elsewhere[0].std() < 1.5
