"""Convert an IP-Adapter to the names of `calotype.backends.torch.image_prompts`, by diffusers' own converter.

This module imports torch, so it runs in a child process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from calotype.backends.torch.image_prompts import WEIGHTS, ip_adapter_of

from ..convert import check_tensors
from .file import KEYS, PROJECTION, in_order

Tensors = Mapping[str, Tensor]


def convert_ip_adapter_into(*, out: str, file: str, number: int, original: bool, config: Mapping[str, Any]) -> None:
    """Write adapter `number` of a file as a folder. Raises `SourceError` if a tensor is missing or of another shape."""
    tensors = load_file(file)
    state = _original(tensors) if original else _of_diffusers(tensors, number)
    with torch.device("meta"):
        network = ip_adapter_of(config)
    check_tensors(f"{file} is an IP-Adapter, but it", state, network)
    folder = Path(out)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS, {"format": "pt"})


def _original(tensors: Tensors) -> dict[str, Tensor]:
    from diffusers.loaders.unet import UNet2DConditionLoadersMixin

    projection = {n.removeprefix(PROJECTION): t for n, t in tensors.items() if n.startswith(PROJECTION)}
    network = UNet2DConditionLoadersMixin()._convert_ip_adapter_image_proj_to_diffusers(
        projection, low_cpu_mem_usage=False
    )
    own = {n.removeprefix(KEYS): t for n, t in tensors.items() if n.startswith(KEYS)}
    numbers = sorted({int(name.split(".")[0]) for name in own if name.endswith("to_k_ip.weight")})
    state = {f"projection.{name}": tensor for name, tensor in network.state_dict().items()}
    for place, each in enumerate(numbers):
        for name, side in (("keys", "to_k_ip"), ("values", "to_v_ip")):
            if (tensor := own.get(f"{each}.{side}.weight")) is not None:
                state[f"{name}.{place}.weight"] = tensor
    return state


def _of_diffusers(tensors: Tensors, number: int) -> dict[str, Tensor]:
    start = f"encoder_hid_proj.image_projection_layers.{number}."
    state = {f"projection.{n.removeprefix(start)}": t for n, t in tensors.items() if n.startswith(start)}
    for place, name in enumerate(in_order(tensors, number)):
        state[f"keys.{place}.weight"] = tensors[name]
        if (value := tensors.get(name.replace("to_k_ip", "to_v_ip"))) is not None:
            state[f"values.{place}.weight"] = value
    return state
