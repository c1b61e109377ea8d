"""Unconditional pixel diffusion (`UNet2DModel`, DDPM and DDIM): the same images as diffusers."""

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import calotype
from calotype import cli
from calotype.errors import InputError, SourceError
from calotype.export import BuildSpec, build, prepare
from calotype.export.quality.metrics import psnr
from calotype.plan.profile import Range

MIN_DB = {"eager": 60, "onnxruntime": 50}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A smaller model in the form of google/ddpm-cifar10-32."""
    torch.manual_seed(11)
    unet = diffusers.UNet2DModel(
        sample_size=32,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    folder = tmp_path_factory.mktemp("pixels") / "model"
    diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pixels(folder):
    return {backend: calotype.load(folder, backend=backend) for backend in MIN_DB}


@pytest.mark.parametrize("name", ["ddpm", "ddim", "euler", "euler-a", "dpm++2m-karras", "unipc"])
def test_images_match_diffusers(folder, pixels, name):
    """DDPM and DDIM clip their predictions, which is not linear: diffusers' schedulers run, and the report notes it."""
    config = diffusers.DDPMScheduler.load_config(folder / "scheduler")
    kind = {
        "ddpm": diffusers.DDPMScheduler,
        "ddim": diffusers.DDIMScheduler,
        "euler": diffusers.EulerDiscreteScheduler,
        "euler-a": diffusers.EulerAncestralDiscreteScheduler,
        "dpm++2m-karras": diffusers.DPMSolverMultistepScheduler,
        "unipc": diffusers.UniPCMultistepScheduler,
    }[name]
    more = {"use_karras_sigmas": True} if "karras" in name else {}
    expected = generate(folder, kind.from_config(config, **more))
    for backend, min_db in MIN_DB.items():
        result = pixels[backend](num_images=2, steps=6, seed=5, scheduler=name, output_type="np")
        assert psnr(result.images, expected) >= min_db, backend
        assert any("clips the clean latents" in note for note in result.report.notes) == (name in ("ddpm", "ddim"))


def generate(folder, scheduler):
    """DDPMPipeline's loop with the input scaling of sigma schedulers.  # [2, 32, 32, 3]"""
    unet = diffusers.UNet2DModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False).eval()
    generator = [torch.Generator().manual_seed(s) for s in (5, 6)]
    noise = torch.cat([torch.randn((1, 3, 32, 32), generator=g) for g in generator])
    scheduler.set_timesteps(6)
    takes = (
        {"generator": generator}
        if type(scheduler).__name__ in ("DDPMScheduler", "EulerAncestralDiscreteScheduler")
        else {}
    )
    x = noise * scheduler.init_noise_sigma
    with torch.inference_mode():
        for t in scheduler.timesteps:
            output = unet(scheduler.scale_model_input(x, t), t).sample
            x = scheduler.step(output, t, x, **takes).prev_sample
    return (x / 2 + 0.5).clamp(0, 1).numpy().transpose(0, 2, 3, 1)


def test_diffusers_pipelines_match(folder, pixels):
    for kind in (diffusers.DDPMPipeline, diffusers.DDIMPipeline):
        reference = kind.from_pretrained(folder, low_cpu_mem_usage=False)
        reference.set_progress_bar_config(disable=True)
        generator = [torch.Generator().manual_seed(7)]
        expected = reference(num_inference_steps=8, generator=generator, output_type="np").images
        scheduler = {diffusers.DDPMPipeline: None, diffusers.DDIMPipeline: "ddim"}[kind]
        result = pixels["eager"](steps=8, seed=7, scheduler=scheduler, output_type="np")
        assert psnr(result.images, expected) >= 60


def test_inpainting_in_pixels(pixels):
    image = Image.fromarray(np.full((32, 32, 3), (200, 30, 30), np.uint8))
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (0, 0, 16, 32))
    images = pixels["eager"](image=image, mask_image=mask, steps=4, seed=1, output_type="np").images
    np.testing.assert_allclose(images[0, :, 16:], np.asarray(image)[:, 16:] / 255, atol=1e-6)
    assert images[0, :, :16].std() > 0.02


def test_unsupported_arguments_are_refused(folder, tmp_path):
    fake = calotype.load(folder, backend="fake")
    assert fake(steps=1).images[0].size == (32, 32)
    assert fake("", steps=1, width=64, height=48).images[0].size == (64, 48)
    for wrong in ({"prompt": "a ring"}, {"prompt": ["", ""]}, {"negative_prompt": "a ring"}):
        with pytest.raises(InputError, match="unconditional"):
            fake(**wrong)
    with pytest.raises(InputError, match="clip_skip"):
        fake(clip_skip=1)
    with pytest.raises(SourceError, match="takes no ControlNet"):
        calotype.load(folder, vae=folder / "unet", backend="fake")
    with pytest.raises(InputError, match="without text"):
        build(BuildSpec(model=str(folder), output=tmp_path / "plan", prompts=tmp_path / "prompts.txt"))
    assert prepare(folder, forms=()).family == "pixels"


def test_a_plan_is_built_saved_and_read_without_text(folder, pixels, tmp_path):
    steps = Range(min=2, opt=4, max=4)
    spec = BuildSpec(model=str(folder), output=tmp_path / "plan", proof=1, proof_steps=2, steps=steps)
    assert build(spec).plan.build["proof"]["psnr"] > 60
    plan = calotype.load(tmp_path / "plan")
    for name in (None, "euler"):  # the model's own scheduler is no matrix
        got, expected = (p(seed=3, steps=4, scheduler=name, output_type="np").images for p in (plan, pixels["eager"]))
        assert psnr(got, expected) > 50
    output = tmp_path / "a.png"
    done = CliRunner().invoke(
        cli.app, ["generate", "--model", str(tmp_path / "plan"), "--steps", "2", "-o", str(output)]
    )
    assert done.exit_code == 0, done.output
    again = CliRunner().invoke(cli.app, ["generate", "--like", str(output), "-o", str(tmp_path / "b.png")])
    assert again.exit_code == 0, again.output
    with Image.open(output) as one, Image.open(tmp_path / "b.png") as two:
        np.testing.assert_array_equal(np.asarray(one), np.asarray(two))


@pytest.mark.parametrize(
    ("changes", "keyword"),
    [
        ({"num_class_embeds": 10}, "num_class_embeds"),
        ({"in_channels": 1, "out_channels": 1}, "in_channels"),
        ({"block_out_channels": None}, "block_out_channels"),
    ],
)
def test_other_networks_are_refused(folder, tmp_path, changes, keyword):
    copy = shutil.copytree(folder, tmp_path / "model")
    config = copy / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(SourceError, match=keyword):
        calotype.load(copy, backend="fake")
