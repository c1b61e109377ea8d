"""Stable Diffusion 1.5 with all its config fields, a thousand times smaller: the same images as diffusers."""

import diffusers
import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import calotype
from calotype.errors import InputError
from calotype.export.quality.metrics import psnr

CROSS = "CrossAttnDownBlock2D"
LEVELS = {
    4: {
        "block_out_channels": (32, 64, 64, 64),
        "down_block_types": (CROSS, CROSS, CROSS, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    },
    2: {
        "block_out_channels": (32, 64),
        "down_block_types": (CROSS, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    },
}


def saved(folder, demo_folder, levels):
    """Save the model, with a U-Net of four levels as published; with two, a trace takes a third of the time."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(demo_folder / "tokenizer")
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    vae = diffusers.AutoencoderKL.from_pretrained(demo_folder / "vae", dtype=torch.float32)
    if levels == 4:
        vae = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(32, 32, 32, 64),
            layers_per_block=1,
            latent_channels=4,
        )
    model = diffusers.StableDiffusionPipeline(
        unet=diffusers.UNet2DConditionModel(
            sample_size=16,
            layers_per_block=2,
            cross_attention_dim=32,
            attention_head_dim=8,  # SD 1.5's: the number of heads, for every level
            **LEVELS[levels],
        ),
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        scheduler=diffusers.PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("levels", "backend", "min_db"), [(4, "eager", 60), (2, "onnxruntime", 50)])
def test_images_match_diffusers(demo_folder, tmp_path, levels, backend, min_db):
    folder = saved(tmp_path / "model", demo_folder, levels)
    reference = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, dtype=torch.float32, safety_checker=None, low_cpu_mem_usage=False
    )
    reference.set_progress_bar_config(disable=True)
    settings = {"negative_prompt": "a red ring", "guidance_scale": 5.0, "width": 192, "height": 128}
    settings["output_type"] = "np"
    generator = torch.Generator().manual_seed(11)
    expected = reference("a blue square", num_inference_steps=5, generator=generator, **settings).images
    result = calotype.load(folder, backend=backend)("a blue square", steps=5, seed=11, **settings)
    assert result.report.network_calls == 6  # PNDM's warm-up
    assert psnr(result.images, expected) >= min_db
    assert np.std(result.images) > 0.01


def test_sizes_that_its_unet_cannot_halve_are_refused(demo_folder, tmp_path):
    folder = saved(tmp_path / "model", demo_folder, levels=4)
    with pytest.raises(InputError, match="64"):
        calotype.load(folder, backend="eager")("x", width=96)
