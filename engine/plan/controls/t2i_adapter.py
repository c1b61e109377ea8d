"""T2I-Adapters (Mou et al. 2023, arXiv 2302.08453): the features that they make, and where a U-Net adds them.

An adapter runs once an image, and not at every step as a ControlNet does. Knows configs of diffusers' `T2IAdapter` and
`UNet2DConditionModel`. A place or a feature is (channels, level): how many times the sides of the latents are halved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import SourceError

ADAPTER = "t2i_adapter"  # the component of the first adapter; the others are t2i_adapter_1, ...
IMAGE = "adapter_image"  # input of an adapter
STATE = "adapter_state"  # outputs of an adapter, and inputs of the U-Net: adapter_state.0, ...
TYPES = ("full_adapter", "full_adapter_xl", "light_adapter")
CHANNELS, DOWNSCALE = (320, 640, 1280, 1280), 8  # diffusers' defaults

Feature = tuple[int, int]


def places_of(unet: Mapping[str, Any]) -> list[Feature]:
    """Return where a U-Net adds features: once in each down block, and in the middle. Raises `ValueError`.

    A block with attention adds before its halving, and another one after it, as diffusers does. So Stable Diffusion XL,
    which starts with a block without attention, takes other sizes than Stable Diffusion 1 and 2.
    """
    widths, kinds = unet["block_out_channels"], unet["down_block_types"]
    places = []
    for level, (width, kind) in enumerate(zip(widths, kinds, strict=True)):
        if kind not in ("CrossAttnDownBlock2D", "DownBlock2D"):
            raise ValueError(f"it has a {kind!s:.80}")
        halved = kind == "DownBlock2D" and level + 1 < len(widths)
        places.append((width, level + halved))
    return [*places, (widths[-1], len(widths) - 1)]


def features_of(config: Mapping[str, Any], factor: int) -> list[Feature]:
    """Return the features of an adapter. `factor`: pixels for each latent along a side. Raises `ValueError`."""
    channels, kind = tuple(config.get("channels", CHANNELS)), config.get("adapter_type", TYPES[0])
    downscale = config.get("downscale_factor", DOWNSCALE)
    first = (downscale // factor).bit_length() - 1
    if downscale != factor << max(first, 0):
        raise ValueError(f"downscale_factor is {downscale}; expected {factor} times a power of two")
    if kind == "full_adapter_xl":
        return [(width, first + (i >= 2)) for i, width in enumerate(channels)]
    widths = (*channels, channels[-1]) if kind == "light_adapter" else channels
    return [(width, first + i) for i, width in enumerate(widths)]


def taken_of(features: Sequence[Feature], unet: Mapping[str, Any]) -> list[Feature]:
    """Return the features that a U-Net takes: as in diffusers, one that does not fit the middle is left out."""
    places = places_of(unet)
    last = len(places) - 1
    return [*features[: last + (list(features[last : last + 1]) == places[last:])]]


def check_adapter(name: str, config: Mapping[str, Any], unet: Mapping[str, Any], factor: int) -> None:
    """Check that a U-Net takes the features of an adapter. Raises `SourceError`."""
    try:
        places, taken = places_of(unet), taken_of(features_of(config, factor), unet)
    except ValueError as reason:
        raise SourceError(f"the U-Net cannot take the {name}: {reason}.", path=name) from None
    if config.get("in_channels", 3) not in (1, 3):
        message = f"the {name} takes images of {config['in_channels']} channels; expected 1 (gray) or 3 (RGB)."
        raise SourceError(message, path=name, field="in_channels")
    if taken != places[: len(taken)]:
        raise SourceError(
            f"the {name} does not match this U-Net: its features are {_shown(taken)}, and the U-Net adds "
            f"{_shown(places)}. Use a T2I-Adapter of the same model family.",
            path=name,
            field="channels",
        )


def _shown(features: list[Feature]) -> str:
    return ", ".join(f"{width} channels at 1/{2**level}" for width, level in features)
