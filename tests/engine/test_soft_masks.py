"""Soft masks: differential image-to-image, compared with a loop of diffusers' own networks and schedulers."""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import calotype
from calotype.errors import InputError
from calotype.export.quality.metrics import psnr
from calotype.report.like import read_like

SIZE, STEPS, SEED, SCALE = 64, 6, 5, 5.0
PROMPT = "a large green star on a blue background"
SCHEDULERS = {"ddim": diffusers.DDIMScheduler, "euler": diffusers.EulerDiscreteScheduler}
SCHEDULERS["dpm++2m"] = diffusers.DPMSolverMultistepScheduler


@pytest.fixture(scope="module")
def eager():
    return calotype.load("demo", backend="eager")


@pytest.fixture(scope="module")
def elder(demo_folder):
    return diffusers.StableDiffusionPipeline.from_pretrained(
        demo_folder, dtype=torch.float32, safety_checker=None, low_cpu_mem_usage=False
    )


def ramp():
    """Return a mask that goes from black on the left to white on the right.  # uint8 [H, W]"""
    return np.tile(np.linspace(0, 255, SIZE).round().astype(np.uint8), (SIZE, 1))


def scene():
    image = np.full((SIZE, SIZE, 3), 40, np.uint8)
    image[16:48, 16:48] = (230, 60, 20)
    return image


@torch.inference_mode()
def differential(elder, name, strength):
    """Run Levin and Fried's algorithm: before each step, restore the pixels whose turn has not come."""
    scheduler = SCHEDULERS[name].from_config(elder.scheduler.config)
    scheduler.set_timesteps(STEPS)
    generator = torch.Generator().manual_seed(SEED)
    pixels = torch.from_numpy(scene()).permute(2, 0, 1)[None] / 127.5 - 1
    clean = elder.vae.encode(pixels).latent_dist.sample(generator) * elder.vae.config.scaling_factor
    noise = torch.randn(clean.shape, generator=generator)
    text, negative = elder.encode_prompt(PROMPT, "cpu", 1, True)
    states = torch.cat([negative, text])
    shares = torch.from_numpy(ramp() / 255.0).float()
    factor = SIZE // clean.shape[-1]
    shares = torch.nn.functional.avg_pool2d(shares[None, None], factor)
    count = min(int(STEPS * strength), STEPS)
    timesteps = scheduler.timesteps[STEPS - count :]
    scheduler.set_begin_index(STEPS - count) if hasattr(scheduler, "set_begin_index") else None
    latents = noise * scheduler.init_noise_sigma
    for i, t in enumerate(timesteps):
        noisy = scheduler.add_noise(clean, noise, t[None])
        start = latents if strength == 1 else noisy
        latents = torch.where((shares > 0) & (shares >= 1 - i / count), latents, noisy) if i else start
        out = elder.unet(scheduler.scale_model_input(torch.cat([latents] * 2), t), t, states).sample
        without, with_text = out.chunk(2)
        latents = scheduler.step(without + SCALE * (with_text - without), t, latents).prev_sample
    latents = torch.where(shares > 0, latents, clean)
    return (elder.vae.decode(latents / elder.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)[0]


@pytest.mark.parametrize(("name", "strength"), [("ddim", 0.8), ("euler", 0.5), ("dpm++2m", 1.0)])
def test_it_matches_the_algorithm(eager, elder, name, strength):
    expected = differential(elder, name, strength).permute(1, 2, 0).numpy()
    arguments = {"image": scene(), "mask_image": ramp(), "strength": strength, "scheduler": name, "seed": SEED}
    got = eager(PROMPT, steps=STEPS, guidance_scale=SCALE, soft_mask=True, output_type="np", **arguments).images[0]
    assert psnr(got, expected) >= 60


def test_hard_values_are_the_hard_mask(eager):
    mask = np.where(np.tile(np.arange(SIZE) < SIZE // 2, (SIZE, 1)), 0, 255).astype(np.uint8)
    arguments = {"image": scene(), "mask_image": mask, "steps": 4, "seed": 3, "strength": 0.5, "output_type": "np"}
    soft, hard = (eager(PROMPT, soft_mask=on, **arguments).images for on in (True, False))
    assert psnr(soft, hard) >= 60


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"soft_mask": True}, "soft_mask"),
        ({"soft_mask": "yes", "image": scene(), "mask_image": ramp()}, "soft_mask"),
    ],
)
def test_odd_input(fake, arguments, argument):
    with pytest.raises(InputError) as refused:
        fake(PROMPT, **arguments)
    assert refused.value.argument == argument


def test_a_png_repeats_it(fake, tmp_path):
    mask = Image.fromarray(ramp())
    image = fake(PROMPT, image=Image.fromarray(scene()), mask_image=mask, soft_mask=True, steps=3, seed=1).images[0]
    image.save(tmp_path / "a.png")
    recorded = read_like(tmp_path / "a.png", {"image", "mask_image"}, loras_named=False, model_named=True)
    assert recorded.arguments["soft_mask"] is True
