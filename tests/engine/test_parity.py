"""Parity with diffusers: the demonstration model with the same seeds, in float32, on every backend."""

import diffusers
import numpy as np
import pytest
import torch

from calotype.export.quality.metrics import psnr
from tests.helpers.parity import MIN_DB, half_of

PROMPTS = ["a large red circle on a blue background", "a green star left of a pink heart on a white background", ""]
SCHEDULERS = {
    "ddim": (diffusers.DDIMScheduler, {}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler-a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "dpm++2m-karras": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
}
STEPS = 5
SIZE = {"height": 64, "width": 96}
CASES = [(name, guidance, batch) for name in SCHEDULERS for guidance in (1.0, 5.0) for batch in (1, 3)]


def pytest_generate_tests(metafunc):
    """Compare every case for the table of `--parity`, else every pair of name, guidance and batch."""
    if "guidance_scale" in metafunc.fixturenames:
        metafunc.parametrize(
            ("name", "guidance_scale", "batch"), CASES if metafunc.config.getoption("--parity") else half_of(CASES)
        )


@pytest.fixture(scope="module")
def diffusers_pipe(demo_folder):
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        demo_folder, dtype=torch.float32, safety_checker=None, low_cpu_mem_usage=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_images_match_diffusers(diffusers_pipe, pipes, figures, name, guidance_scale, batch):
    kind, overrides = SCHEDULERS[name]
    diffusers_pipe.scheduler = kind.from_config(
        diffusers_pipe.scheduler.config, **{"use_karras_sigmas": False, **overrides}
    )
    seeds = list(range(40, 40 + batch))
    expected = diffusers_pipe(
        PROMPTS[:batch],
        negative_prompt=["a blue ring on a red background"] * batch,
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale,
        generator=[torch.Generator().manual_seed(s) for s in seeds],
        output_type="np",
        **SIZE,
    ).images
    assert expected.std() > 0.05  # an image, not a flat gray on which all agree
    for backend, pipe in pipes.items():
        got = pipe(
            PROMPTS[:batch],
            negative_prompt="a blue ring on a red background",
            steps=STEPS,
            guidance_scale=guidance_scale,
            seed=seeds,
            scheduler=name,
            output_type="np",
            **SIZE,
        )
        figures.hold(("demonstration", "text to image", name), backend, got.images, expected)


def test_the_models_own_scheduler_is_the_default(diffusers_pipe, pipes, demo_folder):
    diffusers_pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_pretrained(demo_folder, subfolder="scheduler")
    expected = diffusers_pipe(
        PROMPTS[1],
        num_inference_steps=20,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
        width=160,
        height=96,
    ).images
    got = pipes["eager"](PROMPTS[1], seed=3, guidance_scale=5.0, output_type="np", width=160, height=96).images
    assert psnr(got, expected) >= 60


@pytest.mark.parametrize("backend", MIN_DB)
def test_an_image_of_a_batch_depends_on_its_seed_only(pipes, backend):
    pipe = pipes[backend]
    batch = pipe(PROMPTS[:2], seed=[7, 8], steps=3, output_type="np", **SIZE).images
    for i in range(2):
        single = pipe(PROMPTS[i], seed=7 + i, steps=3, output_type="np", **SIZE).images
        # Libraries sum in another order in another batch, which changes the last bits of float32.
        np.testing.assert_allclose(batch[i : i + 1], single, atol=1e-4)
