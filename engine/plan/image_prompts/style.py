"""Style Aligned (Hertz et al. 2023, arXiv 2312.02133) as data: the U-Net's input that couples the rows of a batch.

Each row takes the style of the row that is `style_offset` rows away: 0 is the row itself, and changes nothing. Offsets
are relative, so that they are the same in each part of the guidance, and in a batch that holds rows of several calls.
Knows configs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

STYLE = "style_offset"  # an input of the U-Net: int64, one for each row
_CLASS = "UNet2DConditionModel"
MARK = "style_aligned"  # the field of a source's model_index whose U-Net gets it


class Named(Protocol):
    """A tensor with a name."""

    @property
    def name(self) -> str:
        """The name."""
        ...


def takes_style(inputs: Iterable[Named]) -> bool:
    """Return whether a U-Net with these inputs has the one for a style."""
    return any(binding.name == STYLE for binding in inputs)


def no_style_reason(config: Mapping[str, Any]) -> str | None:
    """Return why a U-Net cannot share its self-attention, or None if it can."""
    if config.get("_class_name", _CLASS) != _CLASS:
        return f"it is a {config['_class_name']!s:.80}"
    kinds = [*config["down_block_types"], *config["up_block_types"]]
    if not any("CrossAttn" in kind and not kind.startswith("K") for kind in kinds):
        return "its blocks have no self-attention of Stable Diffusion's kind"
    return "it has only cross-attention" if config.get("only_cross_attention") is True else None
