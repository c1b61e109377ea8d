"""`python -m calotype.export.demo.train_lora`: train a LoRA that makes the demonstration model generate outlines.

The U-Net trains on the same captions with images of hollow things. Its weights are frozen; two small matrices for each
weight train instead (Hu et al. 2021, arXiv 2106.09685), convolutions included. The result is in diffusers' layout.
Training takes two minutes on one core, with a fixed seed.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from calotype.backends.torch.modules import load_module
from calotype.system import threads

from ..judge import scenes
from ..sources.source import find
from .train_text import load_tokenizer
from .train_unet import Denoising

RANK = 8
HOLLOW = 0.6  # radius of the hole as a share of a thing's radius
SCENES = 1200
STEPS, BATCH, LR = 450, 12, 2e-3


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


@dataclass(frozen=True)
class Latents:
    """Latents of hollow scenes; `train_unet.Latents` has those of normal scenes."""

    values: Tensor  # [count, 4, 16, 16]
    scaling_factor: float

    @classmethod
    @torch.no_grad()
    def of_scenes(cls, vae: Any, count: int) -> Latents:
        """Encode the scenes of the seeds 0..count-1; none of their captions is held out."""
        parts = []
        for start in range(0, count, 50):
            drawn = [scenes.draw_scene(seed, held_out=False) for seed in range(start, min(count, start + 50))]
            pixels = torch.from_numpy(np.stack([render(scene) for scene in drawn]))
            parts.append(vae.encode(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist.mode())
        return cls(torch.cat(parts), float(vae.config.scaling_factor))


class LowRank(nn.Module):
    """A parametrization that adds up @ down to a weight; the product starts at zero."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        out, into, *kernel = weight.shape
        self.down = nn.Parameter(torch.randn(RANK, into, *kernel) / (into * int(np.prod(kernel))) ** 0.5)
        self.up = nn.Parameter(torch.zeros(out, RANK, *(1 for _ in kernel)))

    @property
    def parts(self) -> dict[str, Tensor]:
        """The matrices by their letters in PEFT's names."""
        return {"A": self.down, "B": self.up}

    def forward(self, weight: Tensor) -> Tensor:
        """# [out, in, ...] -> the same"""
        return weight + (self.up.flatten(1) @ self.down.flatten(1)).view_as(weight)


def train(seed: int, steps: int = STEPS, count: int = SCENES) -> dict[str, Tensor]:
    """Train the LoRA, and return its tensors in fp16 by their names in diffusers' layout."""
    from diffusers import AutoencoderKL

    folder = find("demo")
    torch.manual_seed(seed)
    unet: Any = load_module("unet", folder / "unet").model
    encoder: Any = load_module("text_encoder", folder / "text_encoder").model
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
    latents: Any = Latents.of_scenes(vae, count)
    denoising = Denoising(encoder, load_tokenizer(folder / "tokenizer"), latents, torch.device("cpu"))
    added = {name: LowRank(layer.weight) for name, layer in unet.named_modules() if _is_trained(name, layer)}
    for name, low_rank in added.items():
        parametrize.register_parametrization(unet.get_submodule(name), "weight", low_rank)
    optimizer = torch.optim.AdamW([p for each in added.values() for p in each.parameters()], LR, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss = denoising.loss(unet, seed, step, BATCH)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        falling.step()
        if step % 20 == 0:
            print(f"lora,{step},{float(loss.detach()):.5f}", flush=True)
    pairs = {f"unet.{name}.lora_{part}.weight": each for name, a in added.items() for part, each in a.parts.items()}
    return {name: tensor.detach().half().contiguous() for name, tensor in pairs.items()}


def _is_trained(name: str, layer: nn.Module) -> bool:
    """Return whether the layer is in attention, a feed-forward network or a convolution of a resnet."""
    kinds = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "conv2")
    return isinstance(layer, (nn.Linear, nn.Conv2d)) and name.endswith(kinds)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a LoRA of outlines for the demonstration model.")
    parser.add_argument("--out", type=Path, default=Path("engine/demo_model/outline.safetensors"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    torch.set_num_threads(threads.available())
    from safetensors.torch import save_file

    save_file(train(args.seed, args.steps), args.out)
    print(f"wrote the LoRA to {args.out}", flush=True)


if __name__ == "__main__":
    main()
