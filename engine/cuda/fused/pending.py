"""Sums that the next norm computes: the output of a block before its residual, its biases and its skip are added.

A kernel that only adds reads and writes every number again. Group norms read their input anyway, so they add, and store
the sum if another layer needs it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from calotype.kernels.add_bias import add_bias


class Pending:
    """[x + residual + bias, skip], computed at most once.

    Attributes:
        x: [B, C, H, W].
        residual: of x's shape.
        bias: [C].
        skip: [B, D, H, W], channels behind those of x.
    """

    def __init__(
        self, x: Tensor, residual: Tensor | None = None, bias: Tensor | None = None, skip: Tensor | None = None
    ) -> None:
        self.x, self.residual, self.bias, self.skip = x, residual, bias, skip

    @property
    def is_sum(self) -> bool:
        """Whether something has to be added or joined."""
        return any(t is not None for t in (self.residual, self.bias, self.skip))

    def computed(self, total: Tensor) -> None:
        """Take the result, which a norm has stored."""
        self.x, self.residual, self.bias, self.skip = total, None, None, None

    def tensor(self) -> Tensor:
        """Return the result."""
        if self.is_sum:
            total = self.x
            if self.residual is not None or self.bias is not None:
                residual = None if self.residual is None else channels_last(self.residual)
                total = add_bias(channels_last(self.x), residual=residual, bias=self.bias)
            self.computed(total if self.skip is None else torch.cat([total, self.skip], dim=1))
        return self.x

    def joined(self, skip: Tensor) -> Pending:
        """Return the sum with more channels."""
        if self.skip is not None:
            self.tensor()
        return Pending(self.x, self.residual, self.bias, skip)


def channels_last(x: Tensor) -> Tensor:
    """Return x in channels-last format; x itself if it is."""
    return x.contiguous(memory_format=torch.channels_last)


def tokens(image: Tensor) -> Tensor:
    """Return the pixels as rows, a view.  # [B, C, H, W] channels last -> [B, P, C]"""
    return channels_last(image).permute(0, 2, 3, 1).flatten(1, 2)


def summed_bias(*biases: Tensor | None) -> nn.Parameter | None:
    """Return the sum of biases, added in float32 and rounded once; None if there are none."""
    present = [bias for bias in biases if bias is not None]
    if not present:
        return None
    total = torch.stack([bias.data.float() for bias in present]).sum(0)
    return nn.Parameter(total.to(present[0].dtype), requires_grad=False)


def take_bias(layer: Any) -> Tensor | None:
    """Remove the bias of a linear layer or a convolution, and return it."""
    if layer is None or layer.bias is None:
        return None
    bias: Tensor = layer.bias
    layer.bias = None
    return bias


def image_of(rows: Tensor, like: Tensor) -> Tensor:
    """Return rows of pixels as an image of a size, a view.  # [B, P, C], [B, D, H, W] -> [B, C, H, W] channels last"""
    return rows.view(len(rows), *like.shape[2:], -1).permute(0, 3, 1, 2)


def add_product(total: Tensor, rows: Tensor, layer: Any, *, in_place: bool) -> Tensor:
    """Return total + rows W' + bias. In place only without a bias.  # [B, P, C], [B, P, D] -> [B, P, C]"""
    weight: Tensor = layer.weight.flatten(1)  # also of a 1x1 convolution
    bias: Tensor | None = layer.bias
    if not in_place or bias is not None:
        return total + nn.functional.linear(rows, weight, bias)
    total.view(-1, total.shape[-1]).addmm_(rows.reshape(-1, rows.shape[-1]), weight.t())
    return total
