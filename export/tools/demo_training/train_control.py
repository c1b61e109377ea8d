"""Train a ControlNet that steers the demonstration model by edges.

As in the paper (Zhang et al. 2023, arXiv 2302.05543): a trainable copy of the U-Net's first half, connected to the
frozen U-Net by convolutions that start at zero, trains with the U-Net's own loss. `calotype.preprocess.canny` finds
the edges of the scenes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from calotype.export.judge import scenes

from . import train_unet as unet
from .data import cached, training_scenes
from .evaluate import edges_of, f1, held_out_scenes
from .train_text import load_tokenizer
from .trainer import Stage, Trainer, TrainingConfig, grid

STAGE = Stage(name="control", steps=1200, batch=24, lr=1e-3, hold=0.4, ema_decay=0.995, sheet_seconds=240)
SCENES = 6000  # that it trains on
SHOWN = 16  # held-out scenes on its sample sheet
DROPPED = 0.3  # share of empty captions, more than the U-Net's 0.1: without words, the edges must guide the U-Net
# The hint's channels at 128, 64, 32 and 16 pixels per side; the paper's number would cost more than the rest.
HINT_CHANNELS = (8, 16, 32, 64)


class Edges:
    """The edges of training scenes, computed once and cached in a file with one bit per pixel."""

    def __init__(self, count: int, folder: Path) -> None:
        def compute() -> np.ndarray:
            edges = [edges_of(scenes.render(s)) for s in training_scenes(count)]
            return np.packbits(np.stack(edges), axis=-1)

        self.packed = cached(folder / f"edges-{count}.npy", compute)  # [count, SIZE, SIZE / 8]

    def __call__(self, which: np.ndarray) -> Tensor:
        """Return control images of some scenes.  # [B] -> [B, 3, SIZE, SIZE], 0 and 1"""
        return hints(np.unpackbits(self.packed[which], axis=-1))


def hints(edges: np.ndarray) -> Tensor:
    """Return control images as a pipeline passes them to a ControlNet.  # [B, H, W] of 0 and 1 -> [B, 3, H, W]"""
    return torch.from_numpy(edges.astype(np.float32))[:, None].repeat(1, 3, 1, 1)


class Steering(unet.Denoising):
    """The U-Net's loss as a function of a ControlNet's weights; the U-Net is frozen."""

    dropped = DROPPED

    def __init__(self, parts: tuple[Any, ...], network: Any, control_images: Callable[[np.ndarray], Tensor]) -> None:
        """Take the arguments of `Denoising`, the U-Net, and control images of scenes.  # [B] -> [B, 3, SIZE, SIZE]"""
        super().__init__(*parts)
        self.network, self.control_images = network, control_images
        self._cache: dict[str, Tensor] = {}

    def states(self, captions: list[str]) -> Tensor:
        """Return the text encoder's states, cached for every caption: the same few thousand repeat."""
        fresh = [c for c in dict.fromkeys(captions) if c not in self._cache]
        if fresh:
            self._cache |= dict(zip(fresh, super().states(fresh).half(), strict=True))
        return torch.stack([self._cache[c] for c in captions]).float()

    def predict(self, network: Any, noised: Tensor, t: Tensor, states: Tensor, which: np.ndarray) -> Tensor:
        images = self.control_images(which).to(noised.device)
        down, middle = network(noised, t, states, images, return_dict=False)
        predicted: Tensor = self.network(
            noised, t, states, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample
        return predicted


def new_controlnet(network: Any) -> Any:
    """Return the trainable copy, with zero connections and a rescaled initialization of the hint encoder.

    PyTorch's default initialization shrinks a few white lines to a thousandth over the seven convolutions, so the copy
    ignores them for hundreds of steps. Here every layer preserves the variance of its input.
    """
    from diffusers import ControlNetModel

    controlnet = ControlNetModel.from_unet(network, conditioning_embedding_out_channels=HINT_CHANNELS)
    reader = controlnet.controlnet_cond_embedding
    for layer in (reader.conv_in, *reader.blocks):
        gain = 1.6 if layer is not reader.conv_in else layer.weight[0].numel() ** 0.5  # lines are thin: most is zero
        nn.init.normal_(layer.weight, 0, gain / layer.weight[0].numel() ** 0.5)
        nn.init.zeros_(layer.bias)
    return controlnet


def train_control(config: TrainingConfig, model: Path) -> Any:
    """Train a ControlNet for the model (in diffusers' layout) in `model`, which does not change."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    options: dict[str, Any] = {"low_cpu_mem_usage": False, "torch_dtype": torch.float32}
    network = UNet2DConditionModel.from_pretrained(model / "unet", **options).to(config.device).requires_grad_(False)
    vae = AutoencoderKL.from_pretrained(model / "vae", **options).to(config.device).requires_grad_(False)
    text_encoder = CLIPTextModel.from_pretrained(model / "text_encoder", dtype=torch.float32).to(config.device)
    torch.manual_seed(config.seed)
    trainer = Trainer(STAGE, new_controlnet(network).requires_grad_(True), config)
    edges = Edges(SCENES, config.folder)
    latents = replace(unet.Latents.cached(vae, SCENES, config), scaling_factor=float(vae.config.scaling_factor))
    parts = (text_encoder, load_tokenizer(model / "tokenizer"), latents, config.device)
    steering = Steering(parts, network, edges)

    drawn = held_out_scenes(SHOWN)
    expected = np.stack([edges_of(scenes.render(s)) for s in drawn])
    held_out = Steering(parts, network, lambda which: hints(expected[which]))

    def sheet(controlnet: nn.Module) -> np.ndarray:
        images = unet.sample(controlnet, vae, held_out, [scenes.caption(s) for s in drawn], guidance=5.0, steps=10)
        tiles = [grid(images[i : i + 1]) for i in range(len(images))]
        score = np.mean([f1(edges_of(tile), edges) for tile, edges in zip(tiles, expected, strict=True)])
        print(f"control: F1 {score:.3f} of edges on {len(drawn)} held-out scenes at step {trainer.step}", flush=True)
        return grid(torch.cat([hints(expected) * 2 - 1, images]))

    return trainer.train(lambda step: steering.loss(trainer.model, config.seed, step, STAGE.batch), sheet)
