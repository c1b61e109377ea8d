"""The networks of the demonstration model: all sizes and the noise schedule.

It is a complete Stable Diffusion (CLIP text encoder, U-Net with cross-attention, KL autoencoder of factor 8), small
enough to train on two CPU cores. This module does not know training or scenes.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPModel, CLIPTextModel

TEXT_WIDTH = 128
MAX_TOKENS = 77
LATENT_SIZE = 16  # for images of 128 px: the autoencoder's factor is 8

VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (16, 32, 64, 128),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 2,  # few: in a group of two channels, a flat image keeps only the sign of its color
    "sample_size": 128,
    "mid_block_add_attention": False,
}

# Stable Diffusion 1.5's noise schedule. Trailing timesteps begin at the noisiest step, like a generation from noise.
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
    "timestep_spacing": "trailing",
    "steps_offset": 1,
}


def new_vae() -> AutoencoderKL:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(in_channels=3, out_channels=3, **VAE)
    # Start the posterior at a small variance (log-variance -6): a random variance hides the image for many steps.
    vae.quant_conv.bias.data[VAE["latent_channels"] :] = -6.0
    return vae


def new_unet() -> UNet2DConditionModel:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=(2, 4),
        norm_num_groups=8,
    )


def new_text_encoder(vocabulary: int) -> CLIPTextModel:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            hidden_act="quick_gelu",
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )


# The demonstration's CLIP sees images at half their width and height, as 8 x 8 patches of 8 pixels.
SIGHT = 64
VISION: dict[str, Any] = {
    "image_size": SIGHT,
    "patch_size": 8,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "hidden_act": "quick_gelu",
}
CLIP_WIDTH = 128  # of the space that captions and images share


def new_clip(text_encoder: CLIPTextModel) -> CLIPModel:
    """Return an untrained CLIP whose text encoder is a copy of `text_encoder`."""
    from transformers import CLIPConfig, CLIPModel

    text = text_encoder.config.to_dict() | {"projection_dim": CLIP_WIDTH}
    vision = VISION | {"projection_dim": CLIP_WIDTH}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=CLIP_WIDTH))
    model.text_model.load_state_dict(text_encoder.state_dict())
    return model


def train_tokenizer(captions: Iterable[str], folder: Path) -> None:
    """Train a CLIP tokenizer (lower-case byte-level BPE) on `captions` and save it to `folder`.

    The vocabulary has CLIP's order: 256 bytes, 256 bytes that end a word, the merges, start and end of text.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=2048, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator(captions, trainer)
    merges = [tuple(m) for m in json.loads(bpe.to_str())["model"]["merges"]]
    symbols = [*alphabet, *(a + "</w>" for a in alphabet), *(a + b for a, b in merges)]
    symbols += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {symbol: i for i, symbol in enumerate(dict.fromkeys(symbols))}
    CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS).save_pretrained(folder)
    # The two classic files of CLIP tokenizers, for readers that do not support tokenizer.json.
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def save_model(folder: Path, parts: Mapping[str, Any], tokenizer: Path) -> None:
    """Write a model in diffusers' layout, in fp16, for `StableDiffusionPipeline.from_pretrained`.

    Args:
        parts: the trained `unet`, `vae` (with the scaling factor in its config) and `text_encoder`.
        tokenizer: the folder that `train_tokenizer` wrote.
    """
    import torch
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
    from transformers import CLIPTokenizer

    pipeline = StableDiffusionPipeline(
        unet=parts["unet"],
        vae=parts["vae"],
        text_encoder=parts["text_encoder"],
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer),
        scheduler=DPMSolverMultistepScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(folder, safe_serialization=True)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(tokenizer / name, folder / "tokenizer")
    # As in Stable Diffusion's own config: otherwise DDIM and DDPM clip latents as if they were pixels.
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text()) | {"clip_sample": False, "set_alpha_to_one": False}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
