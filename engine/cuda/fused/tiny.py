"""The tiny autoencoder: convolutions with their bias, sum and ReLU in one kernel of cuDNN."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import Tensor, nn

from ...system.switches import disabled_optimizations

_CUDNN = ("cuda", "meta")  # devices with the fused operators; on meta the benchmarks trace them


class ConvolutionRelu(nn.Module):
    """max(conv(x) + bias + residual, 0)."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """# [B, C, H, W], residual [B, D, h, w] -> [B, D, h, w]"""
        layer = self.convolution
        if x.device.type not in _CUDNN or x.dtype == torch.float32:  # the operators would use TF32
            y = layer(x)
            return nn.functional.relu(y if residual is None else y + residual)
        sizes: Any = (layer.stride, layer.padding, layer.dilation, layer.groups)
        if residual is None:
            return torch.cudnn_convolution_relu(x, layer.weight, layer.bias, *sizes)
        return torch.cudnn_convolution_add_relu(x, layer.weight, residual, 1.0, layer.bias, *sizes)


class FusedTinyBlock(nn.Module):
    """Three convolutions and a skip."""

    def __init__(self, block: AutoencoderTinyBlock) -> None:
        super().__init__()
        first, _, second, _, third = block.conv
        self.first, self.second, self.third = (ConvolutionRelu(layer) for layer in (first, second, third))
        self.skip = block.skip

    def forward(self, x: Tensor) -> Tensor:
        """# [B, C, H, W] -> [B, D, H, W]"""
        return self.third(self.second(self.first(x)), self.skip(x))  # type: ignore[no-any-return]


def fused_tiny_block(block: AutoencoderTinyBlock) -> nn.Module | None:
    """Fuse a block with ReLUs. Return None for others."""
    kinds = (nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU, nn.Conv2d)
    plain = tuple(map(type, block.conv)) == kinds and type(block.fuse) is nn.ReLU
    return FusedTinyBlock(block) if plain and "fused_relu" not in disabled_optimizations() else None


def fuse_relus(layers: nn.Sequential) -> int:
    """Merge each ReLU that follows a convolution into it. Return how many."""
    if "fused_relu" in disabled_optimizations():
        return 0
    merged = 0
    for i in range(len(layers) - 1):
        layer = layers[i]
        if isinstance(layer, nn.Conv2d) and type(layers[i + 1]) is nn.ReLU:
            layers[i], layers[i + 1] = ConvolutionRelu(layer), nn.Identity()
            merged += 1
    return merged
