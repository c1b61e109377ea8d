"""Convolutions that ask cuDNN directly: without TF32 in float32, and with a search for the fastest algorithm.

torch's own switches for both are of the whole process, and other threads would see them change.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...system.switches import disabled_optimizations
from ..capture import warming_up


class DirectConvolution(nn.Conv2d):
    """A convolution. cuDNN keeps the fastest algorithm that it finds before a capture, and a capture uses it."""

    searches = True

    def forward(self, x: Tensor) -> Tensor:
        """# [B, C, H, W] -> [B, D, H', W']"""
        padding = [int(each) for each in self.padding]
        sizes: Any = (self.stride, padding, self.dilation, False, [0, 0], self.groups)  # not transposed
        search = self.searches and warming_up()
        convolution: Any = torch._convolution
        out: Tensor = convolution(x, self.weight, self.bias, *sizes, search, False, True, False)
        return out


def make_direct(module: nn.Module) -> None:
    """Change the class of all plain convolutions inside of a module. Their parameters and names stay."""
    searches = "cudnn_benchmark" not in disabled_optimizations()
    for each in module.modules():
        if type(each) is nn.Conv2d and each.padding_mode == "zeros" and not isinstance(each.padding, str):
            each.__class__ = DirectConvolution
            setattr(each, "searches", searches)  # noqa: B010 - the type checker knows the former class
