"""The networks of the demonstration model, as data: every size is said here and nowhere else.

A Stable Diffusion in every part (CLIP text encoder, U-Net with cross-attention, KL autoencoder of factor 8), small
enough to train on two CPU cores. Knows sizes and schedules; knows nothing of training or of scenes.
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
LATENT_SIZE = 16  # for pictures of 128 px: the autoencoder's factor is 8

VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (16, 32, 64, 128),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 2,  # few: a flat picture in a group of two channels keeps no more than a sign of its color
    "sample_size": 128,
    "mid_block_add_attention": False,
}

# Stable Diffusion 1.5's noise schedule. Trailing timesteps begin at the noisiest step, as a picture does.
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
    # Start the posterior at a small variance (log-variance -6): a random one drowns the picture for many steps.
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


# The eyes of the demonstration's CLIP see half of a picture's pixels each way, in 8 x 8 patches of 8.
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
CLIP_WIDTH = 128  # of the space that words and pictures share


def new_clip(text_encoder: CLIPTextModel) -> CLIPModel:
    """Untrained but for its text encoder, which begins as a copy of the one given."""
    from transformers import CLIPConfig, CLIPModel

    text = text_encoder.config.to_dict() | {"projection_dim": CLIP_WIDTH}
    vision = VISION | {"projection_dim": CLIP_WIDTH}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=CLIP_WIDTH))
    model.text_model.load_state_dict(text_encoder.state_dict())
    return model


def train_tokenizer(captions: Iterable[str], folder: Path) -> None:
    """A CLIP tokenizer (lower-cased byte-level BPE) whose merges are learned from `captions`, saved to `folder`.

    The vocabulary is laid out as CLIP's: 256 bytes, 256 bytes that end a word, the merges, start and end of text.
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
    # The two files that CLIP tokenizers have always had, for readers that do not know tokenizer.json.
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def save_model(folder: Path, parts: Mapping[str, Any], tokenizer: Path) -> None:
    """Write a model in diffusers' layout, in fp16, which `StableDiffusionPipeline.from_pretrained` opens.

    `parts` are the trained `unet`, `vae` (its config says the scaling factor) and `text_encoder`; `tokenizer` is the
    folder that `train_tokenizer` made.
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
    # As in Stable Diffusion's own config: DDIM and DDPM made from it would clip latents as if they were pixels.
    config = folder / "scheduler" / "scheduler_config.json"
    said = json.loads(config.read_text()) | {"clip_sample": False, "set_alpha_to_one": False}
    config.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n")
