"""Every family and task through `load` without `backend=`, on every backend that auto can choose on a CPU."""

from functools import cache

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import calotype
from calotype.export.quality.metrics import psnr
from tests.helpers.backends import change_backend
from tests.helpers.tiny_models import save_controlnet

IMAGE, EDGES = (
    Image.fromarray(np.random.default_rng(s).integers(0, 256, (32, 64, 3), dtype=np.uint8)) for s in range(2)
)
MASK = Image.new("L", IMAGE.size, 0)
MASK.paste(255, (12, 10, 45, 27))
BACKENDS = ("openvino", "onnxruntime", "eager")  # in auto's order

TASKS = {
    "text to image": {"height": 32, "width": 64},
    "image to image": {"image": IMAGE, "strength": 0.7},
    "inpainting": {"image": IMAGE, "mask_image": MASK, "strength": 0.7},
}
ALL, MASKED, FROM_IMAGES = tuple(TASKS), ("inpainting",), ("image to image", "inpainting")
# family: fixture of its folder, its tasks, whether it has a ControlNet
FAMILIES = {
    "sd1": ("demo_folder", ALL, False),
    "sd1 with a ControlNet": ("demo_folder", ALL, True),
    "sd2": ("sd21_folder", ALL, False),
    "sdxl": ("sdxl_folder", ALL, False),
    "sdxl refiner": ("refiner_folder", FROM_IMAGES, False),
    "nine channels": ("inpainting_folder", MASKED, False),
    "latent consistency": ("lcm_folder", ALL, False),
    "latents without text": ("latents_folder", ("text to image",), False),
}
# Every backend runs every family, and every task of another family: a family's networks are the same in all its tasks.
CASES = [
    (family, tasks[(number + turn) % len(tasks)], backend)
    for number, (family, (_, tasks, _)) in enumerate(FAMILIES.items())
    for turn, backend in enumerate(BACKENDS)
]

DOWN, UP = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
LAYOUTS = {
    "ddpm-cifar10-32": {},
    "heads, and scale and shift": {
        "attention_head_dim": 8,
        "layers_per_block": 2,
        "resnet_time_scale_shift": "scale_shift",
    },
    "resnets that resample, without attention": {
        "down_block_types": ("ResnetDownsampleBlock2D",) * 2,
        "up_block_types": ("ResnetUpsampleBlock2D",) * 2,
    },
}


def unet(**settings):
    defaults = {"block_out_channels": (32, 64), "layers_per_block": 1, "down_block_types": DOWN, "up_block_types": UP}
    torch.manual_seed(11)
    return diffusers.UNet2DModel(**{"sample_size": 32, **defaults, **settings})


@pytest.fixture(scope="module")
def latents_folder(tmp_path_factory):
    levels = {"block_out_channels": (32, 64), "latent_channels": 3}
    levels |= {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    folder = tmp_path_factory.mktemp("latents") / "model"
    torch.manual_seed(12)
    parts = {"vqvae": diffusers.AutoencoderKL(**levels), "unet": unet(sample_size=16), "scheduler": scheduler}
    diffusers.LDMPipeline(**parts).save_pretrained(folder)
    return folder


def auto(folder, backend, **parts):
    """Load without `backend=`, with the backends before this one in auto's order unavailable."""
    with pytest.MonkeyPatch.context() as patch:
        for before in BACKENDS[: BACKENDS.index(backend)]:
            change_backend(patch, before, unavailable=lambda: "it is not installed")
        return calotype.load(folder, **parts)


@pytest.fixture(scope="module")
def pipelines(request, tmp_path_factory):
    """A function that loads a family's pipeline on a backend, once."""

    @cache
    def parts_of(family):
        fixture, _, controlled = FAMILIES[family]
        folder = request.getfixturevalue(fixture)
        net = tmp_path_factory.mktemp("net") / "net"
        return folder, {"controlnet": save_controlnet(folder / "unet", net, 0)} if controlled else {}

    @cache
    def load(family, backend):
        folder, parts = parts_of(family)
        return auto(folder, backend, **parts)

    return load


def generate(pipe, task, **more):
    arguments = {"steps": 3, "seed": 5, "output_type": "np", **TASKS[task], **more}
    arguments |= {"guidance_scale": 5.0} if pipe.plan.prompting.states else {}
    return pipe(*(["a large green star"] if pipe.plan.prompting.states else []), **arguments)


def assert_same(got, expected, backend, min_db=50):
    unet = next(c for c in got.report.components if c.name == "unet")
    assert unet.backend == backend, unet.why
    assert not any("failed" in note or "one graph" in note for note in got.report.notes)
    assert psnr(got.images, expected.images) >= min_db


@pytest.mark.parametrize(("family", "task", "backend"), CASES)
def test_every_family_and_task(pipelines, family, task, backend):
    more = {"control_image": EDGES, "controlnet_conditioning_scale": 0.6} if FAMILIES[family][2] else {}
    expected = generate(pipelines(family, "eager"), task, **more)
    assert_same(generate(pipelines(family, backend), task, **more), expected, backend)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_pixel_models(tmp_path, layout):
    kind = diffusers.DDIMScheduler if "heads" in layout else diffusers.DDPMScheduler
    diffusers.DDPMPipeline(unet=unet(**LAYOUTS[layout]), scheduler=kind()).save_pretrained(tmp_path)
    arguments = {"num_images": 2, "steps": 3, "seed": 5, "output_type": "np"}
    expected = auto(tmp_path, "eager")(**arguments)
    for backend in BACKENDS:
        assert_same(auto(tmp_path, backend)(**arguments), expected, backend)
