"""The weights of a module that was fused, by the names they had before: projections packed into one are rows of it now.

A captured graph reads weights where they lie, so it need not be captured again after a change. Imports torch.
"""

from __future__ import annotations

from torch import nn

from ...cuda.fused_attention import FusedAttention
from .weights import Layers, ModuleWeights


def fused_weights(layers: Layers, module: nn.Module) -> ModuleWeights:
    """Of a fused module; `layers` are those of before."""
    packed = {
        id(layer): attention.packed.weight.data[start:stop]
        for attention in module.modules()
        if isinstance(attention, FusedAttention)
        for layer, start, stop in attention.rows
    }
    return ModuleWeights(
        {n: packed[id(layer)] if layer.weight is None else layer.weight.data for n, layer in layers.items()}
    )
