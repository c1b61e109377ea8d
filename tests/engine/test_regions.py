"""Regional prompts, compared with a loop of diffusers' own networks and scheduler."""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import calotype
from calotype.errors import InputError
from calotype.export.quality.metrics import psnr
from calotype.report.like import read_like

SIZE, STEPS, SEED = 64, 4, 5
PROMPT, NEGATIVE = "a large green star on a blue background", "a circle"
REGIONS = ["a large red star on a yellow background", "a small white circle on a green background"]


def half(side):
    """Return a mask of the left or the right half, with a soft edge.  # uint8 [H, W]"""
    ramp = (np.clip(np.arange(SIZE) - SIZE / 2 + 4, 0, 8) / 8 * 255).round().astype(np.uint8)
    return np.tile(ramp if side == "right" else 255 - ramp, (SIZE, 1))


MASKS = [half("left"), half("right")]
CALL = {"region_prompts": REGIONS, "region_masks": MASKS, "steps": STEPS, "seed": SEED, "width": SIZE, "height": SIZE}


@pytest.fixture(scope="module")
def eager():
    return calotype.load("demo", backend="eager")


@torch.inference_mode()
def regional(demo_folder, scale, strength):
    """Run the algorithm: at each step, join the outputs of all prompts by the masks."""
    elder = diffusers.StableDiffusionPipeline.from_pretrained(
        demo_folder, dtype=torch.float32, safety_checker=None, low_cpu_mem_usage=False
    )
    scheduler = diffusers.EulerDiscreteScheduler.from_config(elder.scheduler.config)
    scheduler.set_timesteps(STEPS)
    texts = [NEGATIVE, PROMPT, *REGIONS]
    states = [elder.encode_prompt(text, "cpu", 1, False)[0] for text in texts]
    factor = 2 ** (len(elder.vae.config.block_out_channels) - 1)
    shares = torch.nn.functional.avg_pool2d(torch.from_numpy(np.stack(MASKS) / 255.0).float()[:, None], factor)
    shares = shares * strength
    size = SIZE // factor
    shape = (1, elder.unet.config.in_channels, size, size)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(SEED)) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        sample = scheduler.scale_model_input(latents, t)
        without, plain, *regions = (elder.unet(sample, t, each).sample for each in states)
        joined = (1 - shares.sum(dim=0)) * plain + sum(m * each for m, each in zip(shares, regions, strict=True))
        output = joined if scale == 1 else without + scale * (joined - without)
        latents = scheduler.step(output, t, latents).prev_sample
    return (elder.vae.decode(latents / elder.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)[0]


@pytest.mark.parametrize(("scale", "strength"), [(5.0, 1.0), (1.0, 0.7)])
def test_it_matches_the_algorithm(eager, demo_folder, scale, strength):
    expected = regional(demo_folder, scale, strength).permute(1, 2, 0).numpy()
    arguments = {"guidance_scale": scale, "negative_prompt": NEGATIVE, "scheduler": "euler", "output_type": "np"}
    got = eager(PROMPT, region_strength=strength, **CALL, **arguments).images[0]
    assert psnr(got, expected) >= 60


def test_each_image_is_that_of_its_seed(eager):
    call = CALL | {"output_type": "np", "steps": 2}
    several = eager([PROMPT, "a circle"], **call | {"seed": [3, 4]}).images
    alone = eager("a circle", **call | {"seed": 4}).images[0]
    assert psnr(several[1], alone) >= 60


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_other_backends(eager, backend):
    call = CALL | {"output_type": "np", "steps": 2}
    assert psnr(calotype.load("demo", backend=backend)(PROMPT, **call).images[0], eager(PROMPT, **call).images[0]) >= 50


def test_a_region_of_the_same_prompt_changes_nothing(fake):
    call = CALL | {"region_prompts": [PROMPT, PROMPT], "output_type": "np"}
    plain = {name: value for name, value in call.items() if not name.startswith("region")}
    assert psnr(fake(PROMPT, **call).images, fake(PROMPT, **plain).images) >= 60


def test_with_an_image_a_second_pass_and_guidance_for_some_steps(fake):
    call = CALL | {"image": Image.new("RGB", (SIZE, SIZE)), "strength": 0.5, "hires": 1.5}
    result = fake(PROMPT, guidance_interval=(0, 0.5), guidance_method="cfg-zero", **call)
    assert result.images[0].size == (96, 96)


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"region_prompts": "a"}, "region_masks"),
        ({"region_masks": MASKS}, "region_prompts"),
        ({"region_prompts": REGIONS, "region_masks": MASKS[:1]}, "region_masks"),
        ({"region_prompts": ["a", 3], "region_masks": MASKS}, "region_prompts"),
        ({"region_prompts": [], "region_masks": MASKS}, "region_prompts"),
        ({"region_prompts": REGIONS, "region_masks": [MASKS[0], "none.png"]}, "region_masks"),
        ({"region_prompts": ["a"] * 17, "region_masks": [MASKS[0]] * 17}, "region_prompts"),
        ({"region_prompts": REGIONS, "region_masks": MASKS, "region_strength": float("nan")}, "region_strength"),
        ({"region_strength": 0.5}, "region_strength"),
        ({"region_prompts": REGIONS, "region_masks": MASKS, "callback_on_step_end": print}, "region_prompts"),
        ({"region_prompts": "(a:99)", "region_masks": MASKS[0]}, "region_prompts"),
    ],
)
def test_odd_input(fake, arguments, argument):
    with pytest.raises(InputError) as refused:
        fake(PROMPT, **arguments)
    assert refused.value.argument == argument


def test_a_png_repeats_it(fake, tmp_path):
    fake(PROMPT, region_strength=0.5, **CALL).images[0].save(tmp_path / "a.png")
    recorded = read_like(tmp_path / "a.png", {"region_masks"}, loras_named=False, model_named=True)
    assert (recorded.arguments["region_prompts"], recorded.arguments["region_strength"]) == (REGIONS, 0.5)
    with pytest.raises(InputError) as refused:
        read_like(tmp_path / "a.png", set(), loras_named=False, model_named=True)
    assert refused.value.argument == "region_masks"
