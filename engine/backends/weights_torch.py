"""The weights of a PyTorch module, changed in place and put back from copies of what they were."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from calotype.onnx_weights import plain
from calotype.patches import Patches


class ModuleWeights:
    """Of every linear layer and convolution, by the layer's name in the model."""

    def __init__(self, module: nn.Module) -> None:
        layers = {plain(name): layer for name, layer in module.named_modules()}
        kinds = (nn.Linear, nn.Conv2d)
        self._weights: dict[str, Tensor] = {n: m.weight.data for n, m in layers.items() if isinstance(m, kinds)}
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
            weight.copy_(torch.from_numpy(patch(weight.numpy())))
