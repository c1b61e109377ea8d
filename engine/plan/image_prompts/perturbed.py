"""Perturbed attention guidance (PAG: Ahn et al. 2024, arXiv 2403.17377) as data: inputs of the U-Net.

Each block with self-attention has an input with a number for each row: 1 replaces its attention by the identity, 0
changes nothing. Knows configs and bindings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from .layers import SKIP, image_layers
from .style import Named

PERTURBED = "perturbed_attention"  # the field of a source's model_index whose U-Net gets the inputs
_SKIP = re.compile(rf"{SKIP}_(down|up|mid)_\d{{1,2}}")
Dims = tuple[int | str, ...]


def skip_name(module: str) -> str:
    """Return the input for a module of diffusers' U-Net: "mid_block.attentions.0" gives "attention_skip_mid_0"."""
    block, index = module.split(".")[:2]
    return f"{SKIP}_{block.removesuffix('s').removesuffix('_block')}_{index if block.endswith('s') else 0}"


def skip_names(config: Mapping[str, Any]) -> list[str]:
    """Return the names of these inputs of a U-Net by its config, each float32 [batch]."""
    return list(dict.fromkeys(skip_name(layer.name) for layer in image_layers(config)))


def skip_inputs(names: Iterable[str]) -> dict[str, Dims]:
    """Return the dimensions of those of these inputs that skip attention."""
    return {name: ("batch",) for name in names if _SKIP.fullmatch(name)}


def skips_of(inputs: Iterable[Named]) -> list[str]:
    """Return the names of these inputs of a U-Net; empty for one without them."""
    return [binding.name for binding in inputs if _SKIP.fullmatch(binding.name)]
