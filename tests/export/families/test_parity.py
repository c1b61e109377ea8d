"""Compare every family, task and scheduler with diffusers: the figures of docs/parity.md."""

from functools import cache

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import calotype
from calotype.export.quality.metrics import psnr
from tests.helpers.tiny_models import save_controlnet

FIVE = {
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False}),  # its default is for pixels
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler-a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "dpm++2m-karras": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
}
LCM = {"lcm": (diffusers.LCMScheduler, {"clip_sample": False})}
PROMPT = "a large green star on a blue background"
IMAGE, EDGES = (
    Image.fromarray(np.random.default_rng(s).integers(0, 256, (32, 64, 3), dtype=np.uint8)) for s in range(2)
)
MASK = Image.new("L", IMAGE.size, 0)
MASK.paste(255, (12, 10, 45, 27))  # not aligned to latents
SIZE = {"height": 32, "width": 64}

SD, XL = "StableDiffusion", "StableDiffusionXL"
TASKS = {"text to image": "", "image to image": "Img2Img", "inpainting": "Inpaint"}
BOTH = ("eager", "onnxruntime", "openvino")
# name: fixture of its folder, prefix of diffusers' pipelines, tasks, schedulers, backends, whether it has a ControlNet
MODELS = {
    "Stable Diffusion 2": ("sd21_folder", SD, tuple(TASKS), FIVE, BOTH, False),
    "Stable Diffusion XL": ("sdxl_folder", XL, tuple(TASKS), FIVE, BOTH, False),
    "nine channels": ("inpainting_folder", SD, ("inpainting",), FIVE, BOTH, False),
    "latent consistency": ("lcm_folder", "LatentConsistencyModel", tuple(TASKS), LCM, BOTH, False),
    "demonstration with a ControlNet": ("demo_folder", SD, tuple(TASKS), FIVE, BOTH, True),
    "Stable Diffusion XL with a ControlNet": ("sdxl_folder", XL, tuple(TASKS), FIVE, ("eager",), True),
}
CASES = [(m, t, s) for m, (_, _, tasks, schedulers, *_) in MODELS.items() for t in tasks for s in schedulers]


def pytest_generate_tests(metafunc):
    """Compare every case for the table of `--parity`, else every pair: a sampler knows neither models nor tasks."""
    if "name" in metafunc.fixturenames:
        metafunc.parametrize(
            ("model", "task", "name"), CASES if metafunc.config.getoption("--parity") else list(pairs())
        )


def pairs():
    """Return cases in which each model meets each scheduler and each task, and each task each scheduler."""
    for number, (model, (_, _, tasks, schedulers, *_)) in enumerate(MODELS.items()):
        for turn in range(max(len(tasks), len(schedulers))):
            yield model, tasks[(number + turn) % len(tasks)], list(schedulers)[turn % len(schedulers)]


@pytest.fixture(scope="module")
def pipelines(request, tmp_path_factory):
    """Functions that return a model's pipeline on a backend, and diffusers' for a task; each is loaded once."""

    @cache
    def net(folder):
        path = save_controlnet(folder / "unet", tmp_path_factory.mktemp("nets") / "net", 0)
        return path, diffusers.ControlNetModel.from_pretrained(path, low_cpu_mem_usage=False)

    @cache
    def ours(model, backend):
        fixture, _, _, _, _, controlled = MODELS[model]
        folder = request.getfixturevalue(fixture)
        return calotype.load(folder, backend=backend, controlnet=net(folder)[0] if controlled else ())

    @cache
    def reference(model, task):
        fixture, kind, _, _, _, controlled = MODELS[model]
        folder = request.getfixturevalue(fixture)
        name = f"{kind}{'ControlNet' if controlled else ''}{TASKS[task]}Pipeline"
        cls = getattr(diffusers, name, None) or getattr(diffusers, f"{SD}{TASKS[task]}Pipeline")
        more = {"controlnet": net(folder)[1]} if controlled else {}
        more |= {} if kind == XL else {"safety_checker": None}
        pipe = cls.from_pretrained(folder, dtype=torch.float32, low_cpu_mem_usage=False, **more)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return ours, reference


def test_images_match_diffusers(pipelines, figures, model, task, name):
    ours, reference = pipelines
    _, _, _, schedulers, backends, controlled = MODELS[model]
    options = {"guidance_scale": 5.0, "output_type": "np"}
    options |= {} if task == "text to image" else {"image": IMAGE, "strength": 0.7}
    options |= {"mask_image": MASK} if task == "inpainting" else {}
    options |= {"controlnet_conditioning_scale": 0.6} if controlled else {}
    size = {} if task == "image to image" else SIZE
    expected = generate(reference(model, task), schedulers[name], **options, **size, **edges_of(task, controlled))
    for backend in backends:
        control = {"control_image": EDGES} if controlled else {}
        got = ours(model, backend)(PROMPT, steps=6, seed=5, scheduler=name, **options, **size, **control)
        figures.hold((model, task, name), backend, got.images, expected)


def edges_of(task, controlled):
    """Return the control image under diffusers' name for the task."""
    if not controlled:
        return {}
    return {"image" if task == "text to image" else "control_image": EDGES}


def generate(pipe, scheduler, **options):
    kind, overrides = scheduler
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **{"use_karras_sigmas": False, **overrides})
    generator = [torch.Generator().manual_seed(5)]
    images = pipe(PROMPT, num_inference_steps=6, generator=generator, **options).images
    assert images.std() > 0.01  # a real image: flat gray would always match
    return images


@pytest.mark.parametrize("clip_skip", [None, 1])
def test_clip_skip_applies_only_to_the_prompt(pipelines, clip_skip):
    ours, reference = pipelines
    options = {
        "negative_prompt": "a small blue ring",
        "clip_skip": clip_skip,
        "guidance_scale": 5.0,
        "output_type": "np",
    }
    expected = generate(reference("Stable Diffusion XL", "text to image"), FIVE["ddim"], **options, **SIZE)
    for backend in BOTH:
        pipe = ours("Stable Diffusion XL", backend)
        assert psnr(pipe(PROMPT, steps=6, seed=5, scheduler="ddim", **options, **SIZE).images, expected) >= 60
