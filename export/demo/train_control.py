"""`python -m calotype.export.demo.train_control`: a ControlNet that steers the demonstration model by edges.

As in the paper (Zhang et al. 2023, arXiv 2302.05543): a trainable copy of the U-Net's first half, joined to the frozen
U-Net by convolutions that begin as zeros, and trained by the U-Net's own loss. The edges are those that
`calotype.preprocess.canny` finds in the scenes. Resumes after a stop, as `train` does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..judge import scenes
from ..sources.source import find
from . import train
from . import train_unet as unet
from .edges import edges_of, f1
from .train_text import load_tokenizer

STAGE = train.Stage(name="control", steps=1200, batch=24, lr=1e-3, hold=0.4, ema_decay=0.995, sheet_seconds=240)
SCENES = 6000  # that it learns from
SHOWN = 16  # held-out scenes on its sample sheet
DROPPED = 0.3  # share of captions left out: where words say nothing, edges must; more than the U-Net's own tenth
# The hint's channels at 128, 64, 32 and 16 pixels a side; as many as the paper's would cost more than the rest.
HINT_CHANNELS = (8, 16, 32, 64)


class Edges:
    """The edges of the scenes that training draws, found once and kept in a file, one bit a pixel."""

    def __init__(self, count: int, folder: Path) -> None:
        path = folder / f"edges-{count}.npy"
        if not path.exists():
            seeds = range(count)
            found = [edges_of(scenes.render(scenes.draw_scene(s, held_out=False))) for s in seeds]
            fresh = path.with_suffix(".part.npy")
            np.save(fresh, np.packbits(np.stack(found), axis=-1))
            fresh.replace(path)
        self.packed = np.load(path)  # [count, SIZE, SIZE / 8]

    def __call__(self, which: np.ndarray) -> Tensor:
        """Control images of some scenes.  # [B] -> [B, 3, SIZE, SIZE], 0 and 1"""
        return hints(np.unpackbits(self.packed[which], axis=-1))


def hints(edges: np.ndarray) -> Tensor:
    """As a pipeline gives them to a ControlNet.  # [B, H, W] of 0 and 1 -> [B, 3, H, W]"""
    return torch.from_numpy(edges.astype(np.float32))[:, None].repeat(1, 3, 1, 1)


class Steering(unet.Denoising):
    """The U-Net's loss, of a ControlNet beside the frozen U-Net: what is trained is the ControlNet."""

    dropped = DROPPED

    def __init__(self, parts: tuple[Any, ...], network: Any, control_images: Callable[[np.ndarray], Tensor]) -> None:
        """`parts` are those of `Denoising`; `control_images`: of some scenes.  # [B] -> [B, 3, SIZE, SIZE]"""
        super().__init__(*parts)
        self.network, self.control_images = network, control_images
        self._known: dict[str, Tensor] = {}

    def states(self, captions: list[str]) -> Tensor:
        """Those of every caption are kept: here the same few thousand come again and again."""
        fresh = [c for c in dict.fromkeys(captions) if c not in self._known]
        if fresh:
            self._known |= dict(zip(fresh, super().states(fresh).half(), strict=True))
        return torch.stack([self._known[c] for c in captions]).float()

    def predict(self, network: Any, noised: Tensor, t: Tensor, states: Tensor, which: np.ndarray) -> Tensor:
        images = self.control_images(which).to(noised.device)
        down, middle = network(noised, t, states, images, return_dict=False)
        predicted: Tensor = self.network(
            noised, t, states, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample
        return predicted


def new_controlnet(network: Any) -> Any:
    """The trainable copy, its joints zero, with a reader of hints that begins with something to tell.

    PyTorch's usual start shrinks a few white lines to a thousandth over the seven convolutions, and the copy hears
    nothing of them for hundreds of steps. Here every layer keeps the spread that it is given.
    """
    from diffusers import ControlNetModel

    controlnet = ControlNetModel.from_unet(network, conditioning_embedding_out_channels=HINT_CHANNELS)
    reader = controlnet.controlnet_cond_embedding
    for layer in (reader.conv_in, *reader.blocks):
        gain = 1.6 if layer is not reader.conv_in else layer.weight[0].numel() ** 0.5  # lines are thin: most is zero
        nn.init.normal_(layer.weight, 0, gain / layer.weight[0].numel() ** 0.5)
        nn.init.zeros_(layer.bias)
    return controlnet


def train_control(shop: train.Workshop, model: Path) -> Any:
    """The ControlNet of the model in diffusers' layout in `model`, whose own parts are not changed."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    read: dict[str, Any] = {"low_cpu_mem_usage": False, "torch_dtype": torch.float32}
    network = UNet2DConditionModel.from_pretrained(model / "unet", **read).to(shop.device).requires_grad_(False)
    vae = AutoencoderKL.from_pretrained(model / "vae", **read).to(shop.device).requires_grad_(False)
    text_encoder = CLIPTextModel.from_pretrained(model / "text_encoder", dtype=torch.float32).to(shop.device)
    torch.manual_seed(shop.seed)
    run = train.Run(STAGE, new_controlnet(network).requires_grad_(True), shop)
    edges = Edges(SCENES, shop.folder)
    latents = unet.Latents(vae, SCENES, shop.folder, shop.device)
    latents.scaling_factor = float(vae.config.scaling_factor)
    parts = (text_encoder, load_tokenizer(model / "tokenizer"), latents, shop.device)
    steering = Steering(parts, network, edges)

    drawn = [scenes.draw_scene(s, held_out=True) for s in range(train.HELD_OUT, train.HELD_OUT + SHOWN)]
    wanted = np.stack([edges_of(scenes.render(s)) for s in drawn])
    shown = Steering(parts, network, lambda which: hints(wanted[which]))

    def sheet(controlnet: nn.Module) -> np.ndarray:
        made = unet.sample(controlnet, vae, shown, [scenes.caption(s) for s in drawn], guidance=5.0, steps=10)
        tiles = [train.grid(made[i : i + 1]) for i in range(len(made))]
        reached = np.mean([f1(edges_of(tile), edges) for tile, edges in zip(tiles, wanted, strict=True)])
        print(f"control: F1 {reached:.3f} of edges on {len(drawn)} held-out scenes at step {run.step}", flush=True)
        return train.grid(torch.cat([hints(wanted) * 2 - 1, made]))

    return run.fit(lambda step: steering.loss(run.model, shop.seed, step, STAGE.batch), sheet)


def main() -> None:
    """The command line."""
    what = "the demonstration model's ControlNet"
    shop, said = train.asked(what, folder=".train/control", out="engine/demo_canny", model="demo")
    best = train_control(shop, find(said.model))
    best.cpu().half().save_pretrained(said.out, safe_serialization=True)
    print(f"the ControlNet is in {said.out}", flush=True)


if __name__ == "__main__":
    main()
