"""Published configs of common models, as data without weights.

`single_file` reads checkpoints in the original layout into them, and the benchmarks build their models from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VOCABULARY = 49408
_CROSS, _UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"

_TEXT = {
    **{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    **{"hidden_act": "quick_gelu", "projection_dim": 768, "vocab_size": VOCABULARY, "max_position_embeddings": 77},
    **{"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1},
}
_TEXT_BIG = {
    **_TEXT,
    **{"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20},
    **{"hidden_act": "gelu", "projection_dim": 1280},
}
_TEXT_OPEN = {  # OpenCLIP ViT-H: diffusers ships 23 of its 24 layers, because Stable Diffusion 2 reads the last but one
    **_TEXT,
    **{"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16},
    **{"hidden_act": "gelu", "projection_dim": 512},
}
_VAE = {
    **{"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4, "sample_size": 512},
    **{"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4},
    "scaling_factor": 0.18215,
}
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}

_LEVELS = {
    **{"block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2},
    "down_block_types": [_CROSS, _CROSS, _CROSS, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", _UP, _UP, _UP],
}
_UNET_1 = {**_LEVELS, "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
_UNET_2 = {
    **{**_LEVELS, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20]},
    "use_linear_projection": True,
}
_UNET_XL = {
    **{"cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20], "layers_per_block": 2},
    **{"transformer_layers_per_block": [1, 2, 10], "use_linear_projection": True},
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", _CROSS, _CROSS],
    "up_block_types": [_UP, _UP, "UpBlock2D"],
    **{"addition_embed_type": "text_time", "addition_time_embed_dim": 256},
    "projection_class_embeddings_input_dim": 2816,
}
_UNET_REFINER = {
    **{"cross_attention_dim": 1280, "attention_head_dim": [6, 12, 24, 24], "layers_per_block": 2},
    **{"transformer_layers_per_block": 4, "use_linear_projection": True},
    "block_out_channels": [384, 768, 1536, 1536],
    "down_block_types": ["DownBlock2D", _CROSS, _CROSS, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", _UP, _UP, "UpBlock2D"],
    **{"addition_embed_type": "text_time", "addition_time_embed_dim": 256},
    "projection_class_embeddings_input_dim": 2560,
}
_VAE_XL = {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True}
_XL = {
    "pipeline": "StableDiffusionXLPipeline",
    "text_encoder": ("CLIPTextModel", _TEXT),
    "text_encoder_2": ("CLIPTextModelWithProjection", _TEXT_BIG),
    "vae": ("AutoencoderKL", _VAE_XL),
}
_OPEN = {
    "pipeline": "StableDiffusionPipeline",
    "text_encoder": ("CLIPTextModel", _TEXT_OPEN),
    "vae": ("AutoencoderKL", {**_VAE, "sample_size": 768}),
}
_V = {"clip_sample": False, "set_alpha_to_one": False, "prediction_type": "v_prediction"}
_TURBO = {"timestep_spacing": "trailing", "prediction_type": "epsilon"}  # 1 to 4 steps, without guidance
_SD_TURBO = {
    **_OPEN,
    "scheduler": ("EulerDiscreteScheduler", {**_BETAS, **_TURBO}),
    "unet": ("UNet2DConditionModel", {**_UNET_2, "sample_size": 64}),
}

REFINER: Mapping[str, Any] = {  # stabilityai/stable-diffusion-xl-refiner-1.0
    "pipeline": "StableDiffusionXLImg2ImgPipeline",
    "scheduler": ("EulerDiscreteScheduler", {**_BETAS, "timestep_spacing": "leading"}),
    "text_encoder_2": ("CLIPTextModelWithProjection", _TEXT_BIG),
    "unet": ("UNet2DConditionModel", {**_UNET_REFINER, "sample_size": 128}),
    "vae": ("AutoencoderKL", _VAE_XL),
}

# From runwayml/stable-diffusion-v1-5 and stabilityai/{stable-diffusion-2-1, sd-turbo, stable-diffusion-xl-base-1.0,
# sdxl-turbo}: folder -> the class, and the config's fields that differ from the class's defaults.
MODELS: Mapping[str, Mapping[str, Any]] = {
    "sd15": {
        "pipeline": "StableDiffusionPipeline",
        "scheduler": ("PNDMScheduler", {**_BETAS, "skip_prk_steps": True, "set_alpha_to_one": False}),
        "text_encoder": ("CLIPTextModel", _TEXT),
        "unet": ("UNet2DConditionModel", _UNET_1),
        "vae": ("AutoencoderKL", _VAE),
    },
    "sd21": {
        **_OPEN,
        "scheduler": ("DDIMScheduler", {**_BETAS, **_V}),
        "unet": ("UNet2DConditionModel", {**_UNET_2, "sample_size": 96, "upcast_attention": True}),
    },
    "sd-turbo": _SD_TURBO,
    "sd-turbo-taesd": {**_SD_TURBO, "vae": ("AutoencoderTiny", {})},  # madebyollin/taesd: the class's default sizes
    "sdxl": {
        **_XL,
        "scheduler": ("EulerDiscreteScheduler", {**_BETAS, "timestep_spacing": "leading"}),
        "unet": ("UNet2DConditionModel", {**_UNET_XL, "sample_size": 128}),
    },
    "sdxl-turbo": {
        **_XL,
        "scheduler": ("EulerAncestralDiscreteScheduler", {**_BETAS, **_TURBO}),
        "unet": ("UNet2DConditionModel", {**_UNET_XL, "sample_size": 64}),
    },
}
