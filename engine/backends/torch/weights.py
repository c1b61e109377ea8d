"""The weights of a PyTorch module, changed in place and put back from copies of what they were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...weights.delta import WeightDeltas
from ...weights.onnx import plain

Layers = Mapping[str, Any]  # name -> nn.Linear or nn.Conv2d


def layers_of(module: nn.Module) -> Layers:
    """Linear layers and convolutions, by the layer's name in the model."""
    kinds = (nn.Linear, nn.Conv2d)
    return {plain(name): layer for name, layer in module.named_modules() if isinstance(layer, kinds)}


class ModuleWeights:
    """Weights by their layers' names, on any device and in any type: `SupportsWeightUpdates`'s part of a runner."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = dict(weights)
        self._own: dict[str, Tensor] = {}  # of those that are changed

    @classmethod
    def of(cls, module: nn.Module) -> ModuleWeights:
        """Those of every linear layer and convolution."""
        return cls({name: layer.weight.data for name, layer in layers_of(module).items()})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Layer -> its weight's shape."""
        return {name: tuple(weight.shape) for name, weight in self._weights.items()}

    def update_weights(self, patches: WeightDeltas) -> None:
        """These patches and no others: every other weight is the model's own again, bit for bit."""
        for name, own in self._own.items():
            self._weights[name].copy_(own)
        self._own = {}
        for parameter, patch in patches.patches.items():
            weight = self._weights[name := parameter.removesuffix(".weight")]
            self._own[name] = weight.clone()
            weight.copy_(torch.from_numpy(patch(weight.float().cpu().numpy())))
