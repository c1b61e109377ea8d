"""The weights of a fused module by their original names: a packed projection is a range of rows of the fused one.

A captured graph reads the weights in place, so a change needs no new capture. Imports torch.
"""

from __future__ import annotations

from torch import nn

from ...cuda.fused_attention import FusedAttention
from .weights import Layers, ModuleWeights


def fused_weights(layers: Layers, module: nn.Module) -> ModuleWeights:
    """Return the weights of a fused module; `layers` are its layers before the fusion."""
    packed = {
        id(layer): attention.packed.weight.data[start:stop]
        for attention in module.modules()
        if isinstance(attention, FusedAttention)
        for layer, start, stop in attention.rows
    }
    return ModuleWeights(
        {n: packed[id(layer)] if layer.weight is None else layer.weight.data for n, layer in layers.items()}
    )
