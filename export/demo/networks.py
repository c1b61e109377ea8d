"""The networks of the demonstration model, as data: every size is said here and nowhere else.

A Stable Diffusion in every part (CLIP text encoder, U-Net with cross-attention, KL autoencoder of factor 8), small
enough to train on two CPU cores. Knows sizes and schedules; knows nothing of training or of scenes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

TEXT_WIDTH = 128
MAX_TOKENS = 77
LATENT_SIZE = 16  # for pictures of 128 px: the autoencoder's factor is 8

VAE: dict[str, Any] = dict(
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(16, 32, 64, 128),
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=8,
    sample_size=128,
    mid_block_add_attention=False,
)

# Stable Diffusion 1.5's noise schedule. Trailing timesteps begin at the noisiest step, as a picture does.
SCHEDULER: dict[str, Any] = dict(
    num_train_timesteps=1000,
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    prediction_type="epsilon",
    timestep_spacing="trailing",
)


def new_vae() -> AutoencoderKL:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(in_channels=3, out_channels=3, **VAE)
    # Start the posterior at a small variance (log-variance -6): a random one drowns the picture for many steps.
    vae.quant_conv.bias.data[VAE["latent_channels"] :] = -6.0
    return vae
