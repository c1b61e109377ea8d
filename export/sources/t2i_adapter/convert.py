"""Convert a T2I-Adapter in one file to a folder in diffusers' layout.

This module imports torch, so it runs in a child process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from ..convert import check_tensors, full_config, network_of
from .file import PREFIX

_BLOCK = re.compile(r"body\.(\d+)\.(.+)")


def convert_t2i_adapter_into(*, out: str, file: str, config: Mapping[str, Any], original: bool, each: int) -> None:
    """Write an adapter's file as a folder. Raises `SourceError` if a tensor is missing or of another shape."""
    network = network_of("T2IAdapter", config)
    tensors = load_file(file)
    light = config["adapter_type"] == "light_adapter"
    state = {_renamed(name, light, each): t for name, t in tensors.items()} if original else tensors
    check_tensors(f"{file} is a T2I-Adapter, but with this model it", state, network, ". Use one of the model's family")
    folder = Path(out)
    (folder / "config.json").write_text(json.dumps(full_config(network), indent=1))
    weights = folder / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, weights, {"format": "pt"})


def _renamed(name: str, light: bool, each: int) -> str:
    """Return diffusers' name of a tensor: the original has a flat list of layers, `each` of which are a block."""
    match = _BLOCK.fullmatch(name)
    if match is None:
        return PREFIX + name
    if light:
        return PREFIX + re.sub(r"^(body\.\d+)\.body\.", r"\1.resnets.", name)
    block, layer = divmod(int(match[1]), each)
    inner = match[2] if match[2].startswith("in_conv") else f"resnets.{layer}.{match[2]}"
    return f"{PREFIX}body.{block}.{inner}"
