"""Inpainting with U-Nets of nine channels: SDXL, a ControlNet, and required inputs."""

import shutil

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import calotype
from calotype.errors import InputError
from calotype.export import BuildSpec, build, prepare
from calotype.export.quality.metrics import psnr
from tests.helpers.tiny_models import save_controlnet, tiny_unet

PROMPT = "a large green star on a blue background"
IMAGE, EDGES = (
    Image.fromarray(np.random.default_rng(s).integers(0, 256, (32, 64, 3), dtype=np.uint8)) for s in range(2)
)
MASK = Image.new("L", IMAGE.size, 0)
MASK.paste(255, (12, 10, 45, 27))
SIZE = {"height": 32, "width": 64}


def reference_pipeline(kind, folder, **more):
    settings = {} if "XL" in kind.__name__ else {"safety_checker": None}
    pipe = kind.from_pretrained(folder, dtype=torch.float32, low_cpu_mem_usage=False, **settings, **more)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    return pipe


def reference_images(reference, **options):
    generator = [torch.Generator().manual_seed(5)]
    images = reference(
        PROMPT, num_inference_steps=6, guidance_scale=5.0, generator=generator, output_type="np", **options
    )
    assert images.images.std() > 0.01
    return images.images


def check_images(pipe, expected, min_db, **options):
    got = pipe(PROMPT, steps=6, seed=5, guidance_scale=5.0, output_type="np", **options)
    assert psnr(got.images, expected) >= min_db
    return got


def test_nine_channels_of_xl(sdxl_folder, tmp_path):
    folder = nine_channels_of(sdxl_folder, tmp_path)
    options = {"image": IMAGE, "mask_image": MASK, "strength": 0.7}
    reference = reference_pipeline(diffusers.StableDiffusionXLInpaintPipeline, folder)
    expected = reference_images(reference, **options, **SIZE)
    check_images(calotype.load(folder, backend="eager"), expected, 60, scheduler="euler-a", **options)


def nine_channels_of(folder, tmp_path):
    model = shutil.copytree(folder, tmp_path / "model")
    torch.manual_seed(9)
    config = diffusers.UNet2DConditionModel.load_config(model / "unet")
    diffusers.UNet2DConditionModel.from_config(config | {"in_channels": 9}).save_pretrained(model / "unet")
    index = model / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionXLPipeline", "StableDiffusionXLInpaintPipeline"))
    return model


@pytest.mark.parametrize("arguments", [{}, {"image": IMAGE}])
def test_an_inpainting_model_needs_a_mask(inpainting_folder, arguments):
    fake = calotype.load(inpainting_folder, backend="fake")
    with pytest.raises(InputError, match="mask_image"):
        fake.stream("x", **arguments)
    assert prepare(inpainting_folder, forms=()).family == "sd1"


def test_an_inpainting_model_takes_no_latents(inpainting_folder):
    fake = calotype.load(inpainting_folder, backend="fake")
    with pytest.raises(InputError, match="latents"):
        fake.stream("x", image=np.zeros((1, 4, 8, 12), np.float32), mask_image=MASK)


def test_an_inpainting_plan_is_checked_on_masked_images(inpainting_folder, tmp_path):
    built = build(BuildSpec(model=str(inpainting_folder), output=tmp_path / "plan"))
    assert built.plan.build["proof"]["psnr"] >= 60
    options = {"image": IMAGE, "mask_image": MASK, "steps": 3, "seed": 5, "output_type": "np"}
    planned, direct = (calotype.load(m, backend="onnxruntime") for m in (tmp_path / "plan", inpainting_folder))
    assert psnr(planned(PROMPT, **options).images, direct(PROMPT, **options).images) >= 90


def test_nine_channels_with_a_controlnet_that_gets_no_mask(inpainting_folder, tmp_path):
    torch.manual_seed(8)
    tiny_unet(cross_attention_dim=128).save_pretrained(tmp_path / "unet")
    folder = save_controlnet(tmp_path / "unet", tmp_path / "net", 0)
    net = diffusers.ControlNetModel.from_pretrained(folder, low_cpu_mem_usage=False)
    kind = diffusers.StableDiffusionControlNetInpaintPipeline
    reference = reference_pipeline(kind, inpainting_folder, controlnet=net)
    options = {"image": IMAGE, "mask_image": MASK, "control_image": EDGES, "strength": 1.0}
    options["controlnet_conditioning_scale"] = 0.6
    expected = reference_images(reference, **options, **SIZE)
    pipe = calotype.load(inpainting_folder, controlnet=folder, backend="eager")
    check_images(pipe, expected, 60, scheduler="euler-a", **options)
