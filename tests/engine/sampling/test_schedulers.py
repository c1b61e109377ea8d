"""Names of schedulers, their configuration, and errors for unknown ones."""

import importlib.util
import subprocess
import sys

import diffusers
import numpy as np
import pytest

from calotype.errors import SamplerError
from calotype.sampling.compile import compile_sampler, resolve_scheduler
from calotype.sampling.matrix import SamplerMatrix
from calotype.sampling.schedulers import SchedulerSpec, scheduler_names, spec_from

# As in the repository of Stable Diffusion 1.5.
SD15 = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


@pytest.mark.parametrize("name", [name for name in scheduler_names() if not name.startswith("dpm++sde")])
def test_every_name_becomes_a_matrix(name):
    matrix = compile_sampler(name, 4, base_config=SD15)
    assert isinstance(matrix, SamplerMatrix)
    assert matrix.name == name
    assert matrix.calls >= 4


@pytest.mark.skipif(importlib.util.find_spec("torchsde") is not None, reason="torchsde is installed")
def test_dpm_solver_sde_says_what_it_needs():
    with pytest.raises(SamplerError, match="pip install torchsde"):
        compile_sampler("dpm++sde", 4)


@pytest.mark.parametrize(
    ("spelled", "name"),
    [
        ("DPM++ 2M Karras", "dpm++2m-karras"),
        ("dpmpp_2m_sde", "dpm++2m-sde"),
        ("Euler a", "euler-a"),
        ("euler-ancestral", "euler-a"),
        ("SA_Solver", "sa-solver"),
        ("kdpm2-a-karras", "kdpm2-a-karras"),
    ],
)
def test_a_name_may_be_spelled_freely(spelled, name):
    assert spec_from(spelled).name == name


def test_an_unknown_name_names_the_nearest_and_the_known():
    with pytest.raises(SamplerError, match="nearest: euler"):
        spec_from("eulr")
    for wrong in ("ddim-karras", "", 3, object):
        with pytest.raises(SamplerError):
            compile_sampler(wrong, 4)
    with pytest.raises(SamplerError, match="NoScheduler"):
        compile_sampler("NoScheduler", 4)


@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "lcm", "unipc", "PNDMScheduler"])
def test_the_configuration_is_that_of_from_config(name):
    scheduler = resolve_scheduler(name, SD15)
    expected = type(scheduler).from_config(SD15).config
    keys = [key for key in expected if key in scheduler.config and key[0] != "_"]
    assert {key: scheduler.config[key] for key in keys} == {key: expected[key] for key in keys}


def test_the_models_config_is_the_default():
    assert spec_from(None, SD15).class_name == "PNDMScheduler"
    assert compile_sampler(None, 8, base_config=SD15).calls == 9  # PLMS calls once more
    karras = {**SD15, "use_karras_sigmas": True, "prediction_type": "v_prediction"}
    assert resolve_scheduler("euler", karras).config.use_karras_sigmas
    beta = resolve_scheduler("euler-beta", karras).config
    assert (beta.use_karras_sigmas, beta.use_beta_sigmas, beta.prediction_type) == (False, True, "v_prediction")
    # Defaults that an earlier class filled in are not part of the model's own config.
    filled = diffusers.PNDMScheduler.from_config(SD15).config
    assert resolve_scheduler("euler", filled).config.timestep_spacing == "linspace"


def test_latents_are_clipped_only_if_the_model_sets_it():
    silent = {key: value for key, value in SD15.items() if key != "clip_sample"}
    assert not resolve_scheduler(diffusers.DDIMScheduler, silent).config.clip_sample
    assert resolve_scheduler("ddim", {**SD15, "clip_sample": True}).config.clip_sample


def test_a_fingerprint_covers_all_that_changes_the_matrix_and_nothing_else():
    spec = spec_from("euler", SD15)
    assert len(spec.fingerprint(20)) == 64
    assert spec.fingerprint(20) == spec_from(diffusers.EulerDiscreteScheduler, SD15).fingerprint(20)
    assert spec.fingerprint(20) == spec_from("Euler", dict(reversed(SD15.items()))).fingerprint(20)
    others = [
        spec.fingerprint(21),
        spec_from("euler-karras", SD15).fingerprint(20),
        spec_from("heun", SD15).fingerprint(20),
        spec_from("euler", {**SD15, "steps_offset": 0}).fingerprint(20),
    ]
    assert len({spec.fingerprint(20), *others}) == 5


def test_a_spec_survives_json():
    spec = spec_from("dpm++2m-karras", {**SD15, "trained_betas": np.linspace(0.001, 0.012, 1000)})
    again = SchedulerSpec.from_json(spec.to_json())
    assert again == spec
    assert again.fingerprint(9) == spec.fingerprint(9)
    np.testing.assert_array_equal(compile_sampler(again, 9).rows, compile_sampler(spec, 9).rows)
    with pytest.raises(SamplerError, match="calotype"):
        SchedulerSpec.from_json("[]")


class Halved(diffusers.EulerDiscreteScheduler):
    """A user's own scheduler."""

    def step(self, *args, **kwargs):
        return (super().step(*args, **kwargs).prev_sample / 2,)


def test_schedulers_that_data_cannot_describe_are_compiled_themselves():
    plain = diffusers.DDIMScheduler(clip_sample=False)
    assert spec_from(plain).by_hand == ""
    plain.alphas_cumprod = plain.alphas_cumprod * 0.9
    by_hand = [plain, diffusers.SASolverScheduler(tau_func=lambda t: 0.5), Halved(), Halved]
    for scheduler, why in zip(by_hand, ("alphas_cumprod", "tau_func", "class", "class"), strict=True):
        spec = spec_from(scheduler)
        assert why in spec.by_hand
        assert spec.fingerprint(3) != spec.fingerprint(3)
        assert isinstance(compile_sampler(scheduler, 3), SamplerMatrix)
        with pytest.raises(SamplerError, match="itself"):
            compile_sampler(spec, 3)
    assert not np.allclose(compile_sampler(Halved, 3).rows, compile_sampler("euler", 3).rows)


@pytest.mark.parametrize(
    ("scheduler", "steps", "keyword"),
    [
        ("euler", 0, "1 to 1000"),
        ("euler", 1001, "1 to 1000"),
        ("euler", 2.0, "integer"),
        ("euler", True, "integer"),
        ("lcm", 60, "60 steps"),
        (diffusers.PNDMScheduler(), 1, "one step"),
        (diffusers.DDPMScheduler(variance_type="learned", clip_sample=False), 4, "schedule"),
        (
            SchedulerSpec(name="x", class_name="KDPM2DiscreteScheduler", config={"prediction_type": "sample"}),
            4,
            "not implemented",
        ),
        (diffusers.FlowMatchEulerDiscreteScheduler(), 4, "networks"),
        (diffusers.IPNDMScheduler(), 4, "networks"),
        ("AmusedScheduler", 4, "refuses"),
        (SchedulerSpec(name="x", class_name="DEISMultistepScheduler", config={"algorithm_type": "y"}), 4, "refuses"),
    ],
)
def test_impossible_schedules_raise_one_line(scheduler, steps, keyword):
    with pytest.raises(SamplerError, match=keyword) as caught:
        compile_sampler(scheduler, steps)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert "\n" not in str(caught.value)


def test_names_and_matrices_need_neither_torch_nor_diffusers():
    code = (
        "import sys, calotype.sampling.matrix; from calotype.sampling.schedulers import spec_from;"
        "spec_from('dpm++2m-karras', {'beta_end': 0.012}).fingerprint(20);"
        "print([name for name in ('torch', 'diffusers', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
