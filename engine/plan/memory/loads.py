"""The largest arrays of a model's networks, computed from their configs, for the estimate of memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import SourceError
from ...system.memory import Load

Config = Mapping[str, Any]


def loads_with_text(unet: Config, factor: int) -> list[Load]:
    """Return the attention scores of a U-Net with text."""
    heads = unet.get("num_attention_heads") or unet["attention_head_dim"]  # the second is misnamed in diffusers
    only_text = unet.get("only_cross_attention", False)  # such a level has no scores between its positions
    if heads is None:
        message = "unet/config.json: attention_head_dim is None; expected the number of attention heads."
        raise SourceError(message, path="unet/config.json", field="attention_head_dim")
    loads = []
    for level, kind in enumerate(unet["down_block_types"]):
        count = heads if isinstance(heads, int) else heads[level]
        last = level + 1 == len(unet["down_block_types"])
        if kind == "KCrossAttnDownBlock2D":
            only_text, count = not last, unet["block_out_channels"][level] // count
        if "CrossAttn" in kind and not (only_text if isinstance(only_text, bool) else only_text[level]):
            loads.append(Load(pixels=factor * 2**level, width=count, squared=True, guided=True))
    return loads


def loads_without_text(unet: Config, factor: int) -> list[Load]:
    """Return the hidden states of a U-Net at full size, and its attention scores."""
    loads = [Load(pixels=factor, width=unet["block_out_channels"][0], squared=False, guided=True)]
    for level, (kind, width) in enumerate(zip(unet["down_block_types"], unet["block_out_channels"], strict=True)):
        if "Attn" in kind:
            heads = max(1, width // (unet.get("attention_head_dim") or width))
            loads.append(Load(pixels=factor * 2**level, width=heads, squared=True, guided=True))
    return loads


def loads_of_decoder(widths: Sequence[int], factor: int, *, attends: bool) -> list[Load]:
    """Return the decoder's hidden states at full size, and its attention scores if it `attends`.

    `widths` are the channels of each level.
    """
    # The decoder's last upsampling has the second level's channels.
    loads = [Load(pixels=1, width=max(widths[:2]), squared=False, guided=False)]
    return [*loads, Load(pixels=factor, width=1, squared=True, guided=False)] if attends else loads


def loads_of_frame(unet: Config, factor: int) -> list[Load]:
    """Return the largest arrays of the U-Net for each frame: hidden states, and attention scores of its levels."""
    heads, widths = unet.get("num_attention_heads", (5, 10, 20, 20)), unet["block_out_channels"]
    # The first convolution after a skip connection of the highest level reads twice its channels.
    loads = [Load(pixels=factor, width=2 * widths[0], squared=False, guided=True)]
    for level, kind in enumerate(unet["down_block_types"]):
        if "CrossAttn" in kind:
            count = heads if isinstance(heads, int) else heads[level]
            loads.append(Load(pixels=factor * 2**level, width=count, squared=True, guided=True))
    return loads
