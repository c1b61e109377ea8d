"""The layers of a U-Net in which it attends to text, and with an IP-Adapter to images.

(Ye et al. 2023, arXiv 2308.06721.)

Order and names are diffusers': down blocks, up blocks, middle. An adapter's file numbers its weights in this order.
Knows configs. `calotype.backends.torch.image_prompts` has the same layers as modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STATES, BIAS, SCALE, MASK = "image_states", "image_bias", "image_scale", "image_mask"  # inputs of the U-Net
SKIP = "attention_skip"  # with a block's name an input as well: see `perturbed`
ADAPTER = "ip_adapter"  # the component of the first adapter; the others are ip_adapter_1, ...
KINDS = ("plain", "plus", "full", "face_id")  # of adapters: what they make of an image


@dataclass(frozen=True, kw_only=True)
class ImagePrompting:
    """The image prompts that a model takes.

    Attributes:
        layers: the place of each cross-attention: "down.1.0" is the first attention of the second down block.
        kinds: the kind of each adapter, one of `KINDS`.
    """

    layers: tuple[str, ...]
    kinds: tuple[str, ...]

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> ImagePrompting | None:
        """Return what a plan's manifest holds."""
        return None if data is None else cls(layers=tuple(data["layers"]), kinds=tuple(data["kinds"]))


@dataclass(frozen=True, kw_only=True)
class ImageLayer:
    """One cross-attention.

    Attributes:
        block: "down", "up" or "mid".
        index: the number of the block on its side.
        attention: the number of the attention in its block; it has several layers.
        depth: the number of the layer in its attention.
        width: the channels of its keys and values.
        level: how many times its positions are halved along each side of the latents.
    """

    block: str
    index: int
    attention: int
    depth: int
    width: int
    level: int

    @property
    def name(self) -> str:
        """The layer's name in diffusers."""
        start = "mid_block" if self.block == "mid" else f"{self.block}_blocks.{self.index}"
        return f"{start}.attentions.{self.attention}.transformer_blocks.{self.depth}.attn2"

    @property
    def place(self) -> str:
        """The layer's attention, as `ImagePrompting` and the scales of a call have it."""
        return f"{self.block}.{self.index}.{self.attention}"


def image_layers(config: Mapping[str, Any]) -> tuple[ImageLayer, ...]:
    """Return the cross-attentions of a U-Net by its config, in diffusers' order."""
    widths = config["block_out_channels"]
    levels = range(len(widths))
    layers = _per_level(config.get("layers_per_block", 2), levels)
    depths = _per_level(config.get("transformer_layers_per_block", 1), levels)
    up_depths = config.get("reverse_transformer_layers_per_block") or depths[::-1]
    collected: list[ImageLayer] = []
    for i, kind in enumerate(config["down_block_types"]):
        if kind in ("CrossAttnDownBlock2D", "CrossAttnDownBlockMotion"):
            collected += _block("down", i, layers[i], depths[i], widths[i], i)
    for i, kind in enumerate(config["up_block_types"]):
        level = len(widths) - 1 - i
        if kind in ("CrossAttnUpBlock2D", "CrossAttnUpBlockMotion"):
            collected += _block("up", i, layers[level] + 1, up_depths[i], widths[level], level)
    if config.get("mid_block_type", "UNetMidBlock2DCrossAttn") == "UNetMidBlock2DCrossAttn":
        collected += _block("mid", 0, 1, depths[-1], widths[-1], len(widths) - 1)
    return tuple(collected)


def _per_level(value: Any, levels: Sequence[int]) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value for _ in levels]


def _block(block: str, index: int, attentions: int, depth: Any, width: int, level: int) -> Iterator[ImageLayer]:
    for attention in range(attentions):
        for each in range(depth[attention] if isinstance(depth, (list, tuple)) else depth):
            yield ImageLayer(block=block, index=index, attention=attention, depth=each, width=width, level=level)


def packed_width(layers: Sequence[ImageLayer]) -> int:
    """Return the numbers of one image token: the key and the value of every layer, one after another."""
    return 2 * sum(layer.width for layer in layers)


def mask_name(level: int) -> str:
    """Return the U-Net's input for the masks of the layers of a level."""
    return f"{MASK}_{2**level}" if level else MASK


def unsupported_reason(config: Mapping[str, Any]) -> str | None:
    """Return why a U-Net cannot take image prompts, or None if it can."""
    kinds = [*config["down_block_types"], *config["up_block_types"]]
    if config.get("_class_name") == "UNet2DModel" or any(kind.startswith("K") for kind in kinds):
        return "its blocks have no cross-attention of Stable Diffusion's kind"
    if config.get("dual_cross_attention") or config.get("cross_attention_norm"):
        return "its cross-attention has further parts (dual_cross_attention or cross_attention_norm)"
    return None if image_layers(config) else "it has no cross-attention"
