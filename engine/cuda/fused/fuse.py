"""Replaces modules of a network by modules that call our kernels, with a rule for each type of module.

A rule replaces a module only if it supports all its settings. A replacement uses the parameters of the original module,
rows of a parameter packed from them, or sums of biases. It needs a GPU (or Triton's interpreter). Imports torch,
diffusers and triton: only the cuda backend imports this room, when it is opened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.vae import DecoderTiny, EncoderTiny
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import nn

from ..step_cache import cache_times
from .attention import fused_attention
from .blocks import BLOCK_TYPES, fused_block_of
from .convolution import make_direct
from .norms import FusedGeglu, FusedGroupNorm, FusedLayerNorm, is_affine
from .resnet import fused_resnet
from .tiny import fuse_relus, fused_tiny_block
from .transformer import FusedTransformer2D, fused_block, fused_transformer

_PACKAGE = __name__.rpartition(".")[0]
_RULES: Mapping[type[nn.Module], Callable[[Any], nn.Module | None]] = {
    **dict.fromkeys(BLOCK_TYPES, fused_block_of),
    ResnetBlock2D: fused_resnet,
    Transformer2DModel: fused_transformer,
    BasicTransformerBlock: fused_block,
    Attention: fused_attention,
    AutoencoderTinyBlock: fused_tiny_block,
    GEGLU: FusedGeglu,
    nn.LayerNorm: lambda norm: FusedLayerNorm(norm) if is_affine(norm) else None,
    nn.GroupNorm: lambda norm: FusedGroupNorm(norm, silu=False) if norm.affine else None,
}


def fuse(module: nn.Module) -> Counter[str]:
    """Replace the modules that a rule supports, and use channels-last format.

    CALOTYPE_DISABLE turns rules off.

    Returns:
        How many modules of each fused type there are now.
    """
    _fuse_inside(module)
    for each in module.modules():
        if isinstance(each, FusedTransformer2D):
            each.link()
    cache_times(module)
    make_direct(module)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    kinds = (type(each) for each in module.modules())
    return Counter(kind.__name__ for kind in kinds if kind.__module__.startswith(_PACKAGE))


def _fuse_inside(module: nn.Module) -> None:
    norm = getattr(module, "conv_norm_out", None)
    if type(norm) is nn.GroupNorm and isinstance(getattr(module, "conv_act", None), nn.SiLU):
        module.conv_norm_out, module.conv_act = FusedGroupNorm(norm, silu=True), nn.Identity()
    if isinstance(module, (DecoderTiny, EncoderTiny)):
        fuse_relus(module.layers)
    for name, child in list(module.named_children()):
        rule = _RULES.get(type(child))  # the exact type: a subclass may compute something else
        fused = rule(child) if rule is not None else None
        if fused is not None:
            setattr(module, name, fused)
        _fuse_inside(fused or child)
