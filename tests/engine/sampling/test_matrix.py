"""The sampler matrix compared with every scheduler's own loop, with a non-linear stand-in for the network.

Both sides run in float64. Three classes of diffusers cast to float32 inside `step`. The matrix does not have that
rounding, so the results differ by it. If they differ by more than float64's rounding, the test runs the scheduler again
without the casts, and the results must agree.
"""

import copy
import inspect
import itertools
import sys
from contextlib import ExitStack
from unittest import mock

import diffusers
import numpy as np
import pytest
import torch

from calotype.errors import SamplerError
from calotype.sampling.archive import from_bytes, to_bytes
from calotype.sampling.compile import compile_sampler
from calotype.sampling.matrix import SamplerMatrix

STEPS = (1, 2, 8, 20, 50)
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SIGMAS = (None, "karras", "exponential", "beta")
SPACINGS = ("leading", "linspace", "trailing")
MANY = 20  # combinations of options
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

SHAPE = (1, 4, 4, 4)  # [B, C, H, W]
random = np.random.default_rng(0)
NOISE = random.standard_normal(SHAPE)
DRAWS = random.standard_normal((100, *SHAPE))
WEIGHTS = random.standard_normal((4, 4)) / 2

# class, its config besides the betas, whether every step count is tested if its options are few (else one in turn: LMS
# integrates), the minimum number of schedules that must be compared
CASES = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}, True, 45),
    "ddim-zero-snr": ("DDIMScheduler", {"clip_sample": False, "rescale_betas_zero_snr": True}, True, 36),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}, True, 45),
    "deis": ("DEISMultistepScheduler", {}, True, 36),
    "dpm++2m": ("DPMSolverMultistepScheduler", {}, True, 36),
    "dpm++2m-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, True, 36),
    "dpm++2s": ("DPMSolverSinglestepScheduler", {"lower_order_final": True}, True, 60),
    "euler": ("EulerDiscreteScheduler", {}, True, 36),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}, True, 30),
    "heun": ("HeunDiscreteScheduler", {}, True, 36),
    "kdpm2": ("KDPM2DiscreteScheduler", {}, True, 24),
    "kdpm2-a": ("KDPM2AncestralDiscreteScheduler", {}, True, 24),
    "lcm": ("LCMScheduler", {}, True, 45),
    "lms": ("LMSDiscreteScheduler", {}, False, 36),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}, True, 30),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": False}, True, 18),
    "sa-solver": ("SASolverScheduler", {}, True, 36),
    "tcd": ("TCDScheduler", {}, True, 45),
    "unipc": ("UniPCMultistepScheduler", {}, True, 36),
}


def network(latents, timestep):
    return np.tanh(np.einsum("bchw,cd->bdhw", latents, WEIGHTS) + timestep / 1000)


class DoubleTorch:
    """torch for a module of diffusers, without single precision."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def own_loop(scheduler, steps, without_casts=False):
    """The loop of a diffusers pipeline; None if it fails or a number is not finite."""
    scheduler, draws = copy.deepcopy(scheduler), iter(DRAWS)
    module = sys.modules[type(scheduler).__module__]

    def drawn(shape, generator=None, device=None, dtype=None, layout=None):
        assert shape == SHAPE
        return torch.from_numpy(next(draws)).to(dtype)

    with ExitStack() as stack:
        if hasattr(module, "randn_tensor"):
            stack.enter_context(mock.patch.object(module, "randn_tensor", drawn))
        try:
            scheduler.set_timesteps(steps)
            if hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(0)
            if without_casts:
                stack.enter_context(mock.patch.object(module, "torch", DoubleTorch()))
            latents = torch.from_numpy(NOISE) * scheduler.init_noise_sigma
            options = {"eta": 0.0} if "eta" in inspect.signature(scheduler.step).parameters else {}  # as in a pipeline
            for timestep in scheduler.timesteps:
                scaled = scheduler.scale_model_input(latents, timestep).double().numpy()
                output = torch.from_numpy(network(scaled, float(timestep)))
                latents = scheduler.step(output, timestep, latents, **options).prev_sample
        except (ValueError, NotImplementedError):  # what diffusers raises for unsupported options
            return None
    latents = latents.double().numpy()
    return latents if np.isfinite(latents).all() else None


def matrix_loop(matrix):
    """The loop of the matrix, in plain float64."""
    history = np.zeros((matrix.rows.shape[1], NOISE.size))
    history[0] = NOISE.ravel()
    history[1 + matrix.calls :] = DRAWS[: matrix.draws].reshape(-1, NOISE.size)
    for i, timestep in enumerate(matrix.timesteps):
        history[1 + i] = network((matrix.rows[i] @ history).reshape(SHAPE), timestep).ravel()
    return (matrix.rows[-1] @ history).reshape(SHAPE)


def schedules(class_name, extra, every_step):
    """Schedulers and step counts: the product of all options of the class."""
    kind = getattr(diffusers, class_name)
    takes = inspect.signature(kind).parameters
    sigmas = [word for word in SIGMAS if word is None or f"use_{word}_sigmas" in takes]
    spacings = SPACINGS if "timestep_spacing" in takes else (None,)
    base = kind(**BETAS, **extra)  # once: some take half a second, and read the other options later
    options = list(itertools.product(PREDICTIONS, sigmas, spacings))
    for turn, (prediction, word, spacing) in enumerate(options):
        scheduler = copy.deepcopy(base)
        scheduler.register_to_config(prediction_type=prediction)
        if word:
            scheduler.register_to_config(**{f"use_{word}_sigmas": True})
        if spacing:
            scheduler.register_to_config(timestep_spacing=spacing, steps_offset=int(spacing == "leading"))
        # Many options meet one number of steps each, in turn: then each option still meets every number.
        for steps in STEPS if every_step and len(options) < MANY else (STEPS[turn % len(STEPS)],):
            yield scheduler, steps


def distance(one, other):
    return np.abs(one - other).max() / np.abs(other).max()


@pytest.fixture(autouse=True)
def lms_integrals_once(monkeypatch):
    """Cache the integrals of LMS, which take most of its time and are the same in both runs."""
    scheduler, known = diffusers.LMSDiscreteScheduler, {}
    original = scheduler.get_lms_coefficient

    def cached(self, order, t, current_order):
        key = (self.sigmas.numpy().tobytes(), order, t, current_order)
        if key not in known:
            known[key] = original(self, order, t, current_order)
        return known[key]

    monkeypatch.setattr(scheduler, "get_lms_coefficient", cached)


@pytest.mark.parametrize("case", CASES)
def test_a_matrix_equals_the_scheduler(case):
    class_name, extra, every_step, floor = CASES[case]
    compared = 0
    for scheduler, steps in schedules(class_name, extra, every_step):
        label = f"{scheduler.config}, {steps} steps"
        expected = own_loop(scheduler, steps)
        if expected is None:  # diffusers raises, or returns NaN: so the compiler must raise
            with pytest.raises(SamplerError, match="schedule"):
                compile_sampler(scheduler, steps)
            continue
        matrix = compile_sampler(scheduler, steps)
        assert isinstance(matrix, SamplerMatrix), f"{label}: {matrix.reason}"
        got = matrix_loop(matrix)
        assert distance(got, expected) <= 1e-6, label
        if distance(got, expected) > 1e-12:
            assert distance(got, own_loop(scheduler, steps, without_casts=True)) <= 1e-12, label
        compared += 1
    assert compared >= floor


def test_a_matrix_survives_a_file():
    matrix = compile_sampler("dpm++2m-sde-karras", 4)
    again = from_bytes(to_bytes({"": matrix}), name="x")
    assert (again.name, again.calls, again.draws) == ("x", 4, 4)
    for field in ("timesteps", "rows", "preview"):
        np.testing.assert_array_equal(getattr(again, field), getattr(matrix, field))
        assert not getattr(again, field).flags.writeable


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:200], lambda data: b"no" + data[300:]])
def test_a_damaged_file_is_noticed(damage):
    with pytest.raises(SamplerError, match="damaged"):
        from_bytes(damage(to_bytes({"": compile_sampler("euler", 3)})), name="euler")


@pytest.mark.parametrize(
    ("change", "keyword"),
    [
        ({"rows": np.full((3, 3), np.nan)}, "not finite"),
        ({"rows": np.ones((3, 3))}, "later output"),
        ({"rows": np.zeros((3, 2))}, "do not match"),
        ({"timesteps": np.zeros(3)}, "do not match"),
        ({"preview": np.zeros((2, 1))}, "do not match"),
        ({"timesteps": np.zeros(0), "preview": np.zeros((0, 2)), "rows": np.zeros((1, 1))}, "do not match"),
    ],
)
def test_an_invalid_matrix_raises(change, keyword):
    sound = {"name": "x", "timesteps": np.zeros(2), "rows": np.zeros((3, 3)), "preview": np.zeros((2, 2))}
    assert SamplerMatrix(**sound).draws == 0
    with pytest.raises(SamplerError, match=keyword):
        SamplerMatrix(**(sound | change))


def test_a_scheduler_that_is_passed_in_stays_as_it_was():
    scheduler = diffusers.EulerAncestralDiscreteScheduler()
    scheduler.set_timesteps(7)
    before = copy.deepcopy(scheduler.__dict__)
    compile_sampler(scheduler, 3).run(NOISE.astype(np.float32), lambda: NOISE.astype(np.float32)).input(0)
    assert scheduler.__dict__.keys() == before.keys()
    assert all(str(scheduler.__dict__[key]) == str(value) for key, value in before.items())
