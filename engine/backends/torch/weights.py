"""The weights of a PyTorch module: changed in place, and restored from copies of the original values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...weights.delta import WeightDeltas
from ...weights.onnx import plain

Layers = Mapping[str, Any]  # name -> nn.Linear or nn.Conv2d


def layers_of(module: nn.Module) -> Layers:
    """Return linear layers and convolutions by the layer's name in the model."""
    kinds = (nn.Linear, nn.Conv2d)
    return {plain(name): layer for name, layer in module.named_modules() if isinstance(layer, kinds)}


class ModuleWeights:
    """Weights by layer name, on any device and in any type: implements `SupportsWeightUpdates` for a runner."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = dict(weights)
        self._originals: dict[str, Tensor] = {}  # of the weights that are changed

    @classmethod
    def of(cls, module: nn.Module) -> ModuleWeights:
        """Return the weights of every linear layer and convolution of a module."""
        return cls({name: layer.weight.data for name, layer in layers_of(module).items()})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return each layer's weight shape."""
        return {name: tuple(weight.shape) for name, weight in self._weights.items()}

    def update_weights(self, deltas: WeightDeltas) -> None:
        """Apply these deltas only: all other weights get their original values back, bit for bit."""
        for name, original in self._originals.items():
            self._weights[name].copy_(original)
        self._originals = {}
        for parameter, delta in deltas.patches.items():
            weight = self._weights[name := parameter.removesuffix(".weight")]
            self._originals[name] = weight.clone()
            weight.copy_(torch.from_numpy(delta(weight.float().cpu().numpy())))


def fused_weights(layers: Layers, module: nn.Module) -> ModuleWeights:
    """Return the weights of a fused module by their original names; `layers` are its layers before the fusion.

    A packed projection is a range of rows of the fused one. Captured graphs read the weights in place, so a change
    needs no new capture.
    """
    from ...cuda.fused.attention import FusedAttention

    packed = {
        id(layer): attention.packed.weight.data[start:stop]
        for attention in module.modules()
        if isinstance(attention, FusedAttention)
        for layer, start, stop in attention.rows
    }
    return ModuleWeights(
        {n: packed[id(layer)] if layer.weight is None else layer.weight.data for n, layer in layers.items()}
    )
