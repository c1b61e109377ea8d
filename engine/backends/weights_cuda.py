"""The weights of a module that was fused and lies on a GPU, by the names they had before: changed in place.

A captured graph reads weights where they lie, so it need not be captured again. Projections that were packed into one
are rows of it now. Imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from calotype.fused_attention import FusedAttention
from calotype.onnx_weights import plain
from calotype.patches import Patches

Layers = Mapping[str, Any]  # name -> nn.Linear or nn.Conv2d


def layers_of(module: nn.Module) -> Layers:
    """Linear layers and convolutions by name, before anything is fused."""
    kinds = (nn.Linear, nn.Conv2d)
    return {plain(name): layer for name, layer in module.named_modules() if isinstance(layer, kinds)}


class FusedWeights:
    """Of a fused module, in its own precision; `layers` are those of before."""

    def __init__(self, layers: Layers, module: nn.Module) -> None:
        packed = {
            id(layer): attention.packed.weight.data[start:stop]
            for attention in module.modules()
            if isinstance(attention, FusedAttention)
            for layer, start, stop in attention.rows
        }
        self._weights: dict[str, Tensor] = {}
        for name, layer in layers.items():
            self._weights[name] = packed[id(layer)] if layer.weight is None else layer.weight.data
        self._own: dict[str, Tensor] = {}  # of those that are changed

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Layer -> its weight's shape."""
        return {name: tuple(weight.shape) for name, weight in self._weights.items()}

    def adapt(self, patches: Patches) -> None:
        """These patches and no others: every other weight is the model's own again, bit for bit."""
        for name, own in self._own.items():
            self._weights[name].copy_(own)
        self._own = {}
        for parameter, patch in patches.patches.items():
            weight = self._weights[name := parameter.removesuffix(".weight")]
            self._own[name] = weight.clone()
            weight.copy_(torch.from_numpy(patch(weight.float().cpu().numpy())))
