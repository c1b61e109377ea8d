"""Train a LoRA that makes the demonstration model generate outlines.

The U-Net trains on the same captions with images of hollow things. Its weights are frozen; two small matrices for each
weight train instead (Hu et al. 2021, arXiv 2106.09685), convolutions included. The result is in diffusers' layout.
Training takes two minutes on one core.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from calotype.backends.torch.modules import load_module
from calotype.export.judge import scenes

from .train_text import load_tokenizer
from .train_unet import Denoising, Latents, encode
from .trainer import Stage, Trainer, TrainingConfig

STAGE = Stage(name="lora", steps=450, batch=12, lr=2e-3, lr_end=0.0, warmup=0, ema_decay=0.0)
RANK = 8
HOLLOW = 0.6  # radius of the hole as a share of a thing's radius
SCENES = 1200
_TRAINED = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "conv2")


def render(scene: scenes.Scene) -> NDArray[np.uint8]:
    """Draw the scene with hollow things: the background shows through.  # [SIZE, SIZE, 3]"""
    canvas = np.empty((scenes.SIZE, scenes.SIZE, 3))
    canvas[:] = scenes.COLORS[scene.background]
    for thing in scene.things:
        inner = scenes.coverage(replace(thing, radius=thing.radius * HOLLOW))
        # A ring does not change: the smaller ring is inside its hole.
        alpha = np.clip(scenes.coverage(thing) - inner, 0, 1)[..., None]
        canvas = canvas * (1 - alpha) + np.asarray(scenes.COLORS[thing.color]) * alpha
    return np.rint(canvas).astype(np.uint8)


class LowRank(nn.Module):
    """A parametrization that adds up @ down to a weight; the product starts at zero."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        out, into, *kernel = weight.shape
        self.down = nn.Parameter(torch.randn(RANK, into, *kernel) / (into * int(np.prod(kernel))) ** 0.5)
        self.up = nn.Parameter(torch.zeros(out, RANK, *(1 for _ in kernel)))

    def forward(self, weight: Tensor) -> Tensor:
        """# [out, in, ...] -> the same"""
        return weight + (self.up.flatten(1) @ self.down.flatten(1)).view_as(weight)


def train_lora(config: TrainingConfig, model: Path) -> dict[str, Tensor]:
    """Train the LoRA of the model (in diffusers' layout) in `model`; return its fp16 tensors by diffusers' names."""
    from diffusers import AutoencoderKL

    torch.manual_seed(config.seed)
    unet: Any = load_module("unet", model / "unet").model.requires_grad_(False)
    encoder: Any = load_module("text_encoder", model / "text_encoder").model.to(config.device)
    vae = AutoencoderKL.from_pretrained(model / "vae", torch_dtype=torch.float32).eval().to(config.device)
    values = encode(vae, SCENES, config.device, render).float()
    latents = Latents(values=values, scaling_factor=float(vae.config.scaling_factor))
    denoising = Denoising(encoder, load_tokenizer(model / "tokenizer"), latents, config.device)
    layers = {name: layer for name, layer in unet.named_modules() if name.endswith(_TRAINED)}
    names = [name for name, layer in layers.items() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    for name in names:
        parametrize.register_parametrization(layers[name], "weight", LowRank(layers[name].weight))
    trainer = Trainer(STAGE, unet, config)
    trainer.train(lambda step: denoising.loss(trainer.model, config.seed, step, STAGE.batch))
    tensors = {}
    for name in names:
        added: Any = trainer.model.get_submodule(name).parametrizations.weight[0]
        for letter, tensor in (("A", added.down), ("B", added.up)):  # as PEFT names them
            tensors[f"unet.{name}.lora_{letter}.weight"] = tensor.detach().cpu().half().contiguous()
    return tensors
