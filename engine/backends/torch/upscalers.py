"""Networks that make an image larger: RRDBNet (ESRGAN, Real-ESRGAN) and the compact network of Real-ESRGAN.

A config describes a network: `calotype.export.sources.upscaler` reads it from the weights, and gives both key layouts
of RRDBNet the names below. Sources: Wang et al. 2018, arXiv 1809.00219; Wang et al. 2021, arXiv 2107.10833.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import SourceError, first_line
from ...files.json_file import read_json
from ...weights.safetensors import TensorFile

_SLOPE = 0.2  # of the leaky ReLUs
_RESIDUAL = 0.2  # the share of a block's output that is added to its input


def _conv(into: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(into, out, 3, padding=1)


class DenseBlock(nn.Module):
    """Five convolutions; each takes the outputs of all before it."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        outs = (*[growth] * 4, width)
        self.convs = nn.ModuleList(_conv(width + i * growth, out) for i, out in enumerate(outs))

    def forward(self, x: Tensor) -> Tensor:
        """# [B, C, h, w] -> [B, C, h, w]"""
        *inner, last = self.convs
        features = [x]
        for conv in inner:
            features.append(functional.leaky_relu(conv(torch.cat(features, 1)), _SLOPE))
        out: Tensor = x + _RESIDUAL * last(torch.cat(features, 1))
        return out


class ResidualBlock(nn.Module):
    """Three dense blocks in a row, inside one more residual (RRDB)."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.dense = nn.Sequential(*(DenseBlock(width, growth) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        """# [B, C, h, w] -> [B, C, h, w]"""
        out: Tensor = x + _RESIDUAL * self.dense(x)
        return out


class Rrdb(nn.Module):
    """RRDBNet. `unshuffle` > 1 makes the image smaller first, so that two doublings give a scale of 2 or 1."""

    def __init__(self, *, width: int, blocks: int, growth: int, doublings: int, unshuffle: int) -> None:
        super().__init__()
        self.unshuffle = unshuffle
        if unshuffle > 1:
            # Pixel unshuffle as a convolution: torch.export cannot prove that dynamic sizes are multiples.
            kernel = torch.eye(unshuffle**2).reshape(-1, 1, unshuffle, unshuffle).repeat(3, 1, 1, 1)
            self.register_buffer("kernel", kernel, persistent=False)
        self.first = _conv(3 * unshuffle**2, width)
        self.body = nn.Sequential(*(ResidualBlock(width, growth) for _ in range(blocks)))
        self.after_body = _conv(width, width)
        self.up = nn.ModuleList(_conv(width, width) for _ in range(doublings))
        self.fine, self.last = _conv(width, width), _conv(width, 3)

    def forward(self, sample: Tensor) -> tuple[Tensor]:
        """# [B, 3, H, W] in [0, 1] -> [B, 3, scale H, scale W]"""
        if self.unshuffle > 1:
            sample = functional.conv2d(sample, self.get_buffer("kernel"), stride=self.unshuffle, groups=3)
        x = self.first(sample)
        x = x + self.after_body(self.body(x))
        for conv in self.up:
            x = functional.leaky_relu(conv(functional.interpolate(x, scale_factor=2.0, mode="nearest")), _SLOPE)
        return (self.last(functional.leaky_relu(self.fine(x), _SLOPE)),)


class Compact(nn.Module):
    """SRVGGNetCompact: convolutions and PReLUs at the input's size, then a pixel shuffle onto the nearest pixels."""

    def __init__(self, *, width: int, convs: int, scale: int) -> None:
        super().__init__()
        inner = itertools.chain.from_iterable((_conv(width, width), nn.PReLU(width)) for _ in range(convs))
        self.body = nn.Sequential(_conv(3, width), nn.PReLU(width), *inner, _conv(width, 3 * scale**2))
        self.scale = scale

    def forward(self, sample: Tensor) -> tuple[Tensor]:
        """# [B, 3, H, W] in [0, 1] -> [B, 3, scale H, scale W]"""
        # Each pixel is added to all of its block: the nearest enlargement, before the shuffle.
        residual = self.body(sample) + torch.repeat_interleave(sample, self.scale**2, dim=1)
        return (functional.pixel_shuffle(residual, self.scale),)


_KINDS: Mapping[str, type[nn.Module]] = {"rrdb": Rrdb, "compact": Compact}


def new_upscaler(config: Mapping[str, Any]) -> nn.Module:
    """Return the network that a config describes. Raises `LookupError` or `TypeError` for an invalid config."""
    settings = {name: int(value) for name, value in config.items() if name != "kind"}
    return _KINDS[config["kind"]](**settings)


def load_upscaler(folder: Path) -> nn.Module:
    """Load the network from its config and weights in a folder. Raises `SourceError` if they do not fit."""
    config = read_json(folder / "config.json", "it describes the upscaler")
    try:
        module = new_upscaler(config)
        tensors = TensorFile(folder / "model.safetensors")
        module.load_state_dict({name: torch.from_numpy(tensors[name]) for name in tensors})
    except (LookupError, TypeError, ValueError, RuntimeError) as wrong:
        message = f"the upscaler in {folder} cannot be read: {first_line(wrong)}. Load its file again."
        raise SourceError(message, path=folder) from None
    return module.eval().requires_grad_(False)
