"""Autoencoders in fp16: their residual stream divided by a power of two, which is exact.

SDXL's decoder has activations above 65504, the largest number of fp16. Each norm removes the scale of its input, so all
that writes to the residual stream may be divided by one number, if the epsilon of each norm that reads it is divided by
its square. In float32 the result is the same bit for bit. Imports torch and diffusers.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

DIVISOR = 64.0


def scale_residuals(module: nn.Module, divisor: float = DIVISOR) -> int:
    """Divide the residual streams of the encoders and decoders inside of a module. Call it before `fuse`.

    Args:
        module: the module, changed in place.
        divisor: a power of two.

    Returns:
        How many networks were changed. Others have layers that this does not know.
    """
    networks = [each for each in module.modules() if type(each) in (Encoder, Decoder) and _is_plain(each)]
    with torch.no_grad():
        for network in networks:
            _scale(network, 1 / divisor)
    return len(networks)


def _is_plain(network: Any) -> bool:
    """Return whether every layer that reads or writes the residual stream is known."""
    resnets = [m for m in network.modules() if isinstance(m, ResnetBlock2D)]
    attentions = [m for m in network.modules() if isinstance(m, Attention)]
    norms = [network.conv_norm_out, *(m.norm1 for m in resnets), *(m.group_norm for m in attentions)]
    blocks = {
        type(block).__name__ for block in (*getattr(network, "down_blocks", ()), *getattr(network, "up_blocks", ()))
    }
    known = blocks <= {"DownEncoderBlock2D", "UpDecoderBlock2D"}
    plain = all(m.time_emb_proj is None and m.output_scale_factor == 1 and m.upsample is None for m in resnets)
    added = all(m.residual_connection and m.rescale_output_factor == 1 for m in attentions)
    return known and plain and added and all(type(norm) is nn.GroupNorm for norm in norms)


def _scale(network: Any, factor: float) -> None:
    _multiply(network.conv_in, factor)
    network.conv_norm_out.eps *= factor**2
    for each in network.modules():
        if isinstance(each, ResnetBlock2D):
            each.norm1.eps *= factor**2
            _multiply(each.conv2, factor)
            _multiply(each.conv_shortcut, factor, weight=False)
        elif isinstance(each, Attention):
            each.group_norm.eps *= factor**2
            _multiply(each.to_out[0], factor)
        elif isinstance(each, (Upsample2D, Downsample2D)):
            _multiply(getattr(each, "conv", None), factor, weight=False)


def _multiply(layer: Any, factor: float, *, weight: bool = True) -> None:
    """Multiply a layer's bias, and its weight unless it passes the stream on."""
    if layer is not None:
        if weight:
            layer.weight.mul_(factor)
        if layer.bias is not None:
            layer.bias.mul_(factor)
