"""`timesteps`, `sigmas` and `eta`: the images of diffusers, from a matrix of their own."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers import AysSchedules

from calotype.errors import CalotypeError, InputError, SamplerError
from calotype.export.quality.metrics import psnr
from calotype.report.like import read_like

PROMPT = "a large red circle on a blue background"
SIZE = {"width": 64, "height": 64}
SIGMAS = {"sigmas": AysSchedules["StableDiffusionSigmas"][::2]}
TIMESTEPS = {"timesteps": AysSchedules["StableDiffusionTimesteps"][::2]}
FEW = {"timesteps": [999, 759, 499, 259]}
CASES = {
    "euler-sigmas": ("euler", diffusers.EulerDiscreteScheduler, SIGMAS),
    "euler-timesteps": ("euler", diffusers.EulerDiscreteScheduler, TIMESTEPS),
    "dpm++-timesteps": ("dpm++2m", diffusers.DPMSolverMultistepScheduler, TIMESTEPS),
    "lcm-timesteps": ("lcm", diffusers.LCMScheduler, FEW),
    "tcd-timesteps": ("tcd", diffusers.TCDScheduler, FEW),
    "tcd-eta": ("tcd", diffusers.TCDScheduler, {"eta": 0.3, "num_inference_steps": 4}),
    "tcd": ("tcd", diffusers.TCDScheduler, {"num_inference_steps": 4}),
    "ddpm-timesteps": ("ddpm", diffusers.DDPMScheduler, TIMESTEPS),
    "heun-timesteps": ("heun", diffusers.HeunDiscreteScheduler, FEW),
    "ddim-eta": ("ddim", diffusers.DDIMScheduler, {"eta": 0.6, "num_inference_steps": 4}),
}


@pytest.fixture(scope="module")
def elders(tiny_folder):
    kinds = (diffusers.StableDiffusionPipeline, diffusers.StableDiffusionImg2ImgPipeline)
    base = kinds[0].from_pretrained(tiny_folder, dtype=torch.float32, safety_checker=None, low_cpu_mem_usage=False)
    elders = [kind(**base.components, requires_safety_checker=False) for kind in kinds]
    for pipe in elders:
        pipe.set_progress_bar_config(disable=True)
    return elders


def scheduled(pipe, kind):
    pipe.scheduler = kind.from_config(pipe.scheduler.config, use_karras_sigmas=False)
    return pipe


@pytest.mark.parametrize("case", CASES)
def test_images_are_those_of_diffusers(elders, tiny_pipe, case):
    name, kind, custom = CASES[case]
    arguments = {"guidance_scale": 1.0, "output_type": "np", **custom}
    theirs, ours = (torch.Generator().manual_seed(3) for _ in range(2))
    expected = scheduled(elders[0], kind)([PROMPT] * 2, generator=theirs, **SIZE, **arguments).images
    result = tiny_pipe([PROMPT] * 2, generator=ours, scheduler=name, **SIZE, **arguments)
    assert psnr(result.images, expected) >= 60
    assert not any("own code" in note for note in result.report.notes)  # it is a matrix


@pytest.mark.parametrize("case", ["euler-sigmas", "euler-timesteps", "dpm++-timesteps", "lcm-timesteps"])
def test_image_to_image_takes_a_share(elders, tiny_pipe, case):
    name, kind, custom = CASES[case]
    image = tiny_pipe(PROMPT, seed=1, steps=4, **SIZE).images[0]
    arguments = {"image": image, "strength": 0.6, "guidance_scale": 4.0, "output_type": "np", **custom}
    theirs, ours = (torch.Generator().manual_seed(3) for _ in range(2))
    expected = scheduled(elders[1], kind)(PROMPT, generator=theirs, **arguments).images
    result = tiny_pipe(PROMPT, generator=ours, scheduler=name, **arguments)
    assert psnr(result.images, expected) >= 60


def test_a_png_has_the_schedule(tiny_pipe, tmp_path):
    for i, (name, custom) in enumerate((("euler", SIGMAS), ("lcm", FEW), ("ddim", {"eta": 0.5}))):
        first = tiny_pipe(PROMPT, seed=3, scheduler=name, **SIZE, **custom)
        first.images[0].save(tmp_path / f"{i}.png")
        read = read_like(tmp_path / f"{i}.png", (), loras_named=False, model_named=True).arguments
        np.testing.assert_array_equal(tiny_pipe(**read).images[0], first.images[0])


def test_eta_without_effect_is_in_the_report(fake):
    assert any("eta" in note for note in fake("x", scheduler="euler", eta=0.5, steps=2).report.notes)
    assert not any("eta" in note for note in fake("x", scheduler="ddim", eta=0.5, steps=2).report.notes)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"sigmas": [1, 0], "timesteps": [999]}, InputError),
        ({"sigmas": [1.0]}, InputError),
        ({"sigmas": [1.0, 2.0, 0.0]}, InputError),
        ({"sigmas": [float("nan"), 1.0, 0.0]}, InputError),
        ({"sigmas": [float("inf"), 1.0, 0.0]}, InputError),
        ({"sigmas": "karras"}, InputError),
        ({"sigmas": [[1.0], [0.0]]}, InputError),
        ({"sigmas": [[1.0], 0.0]}, InputError),
        ({"timesteps": []}, InputError),
        ({"timesteps": [0, 500]}, InputError),
        ({"timesteps": [500, -1]}, InputError),
        ({"timesteps": "999"}, InputError),
        ({"timesteps": [5000, 2]}, InputError),
        ({"timesteps": [True]}, InputError),
        ({"eta": -1}, InputError),
        ({"eta": float("nan")}, InputError),
        ({"eta": 2}, InputError),
        ({"sigmas": [14.0, 1.0, 0.0], "scheduler": "ddim"}, SamplerError),
        ({"sigmas": [14.0, 1.0, 0.0], "scheduler": "unipc"}, SamplerError),
        ({"timesteps": [999, 5], "scheduler": "ddim"}, SamplerError),
        ({"timesteps": [999, 5], "scheduler": "euler-karras"}, SamplerError),
        ({"sigmas": [14.0, 1.0, 0.0], "calls": 2}, CalotypeError),
    ],
)
def test_wrong_schedules_raise_before_the_work(fake, arguments, error):
    with pytest.raises(error):
        fake.stream("x", **{"scheduler": "euler", **arguments})
    assert fake.component("unet").runner.calls == 0
