"""Join a U-Net of Stable Diffusion and motion modules to one network of diffusers, and check every tensor.

This module imports torch, so it runs in a child process. A pickle is read with `weights_only=True`, which runs no code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from calotype.errors import SourceError, first_line
from calotype.files.json_file import read_json

from ..convert import check_tensors, full_config, network_of
from ..parts import stem_of
from ..weight_files import PICKLES, weight_files
from .read import CLASS, CONFIG, MARK

_STEM = stem_of("unet")
_LARGEST = 64  # levels, layers and blocks of published modules are fewer than ten
_MODULE = re.compile(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.motion_modules\.(\d+)\.(.+)")
_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.")
# The names of the original layout, and what diffusers calls them.
_RENAMED = {
    ".temporal_transformer.": ".",
    ".attention_blocks.0.": ".attn1.",
    ".attention_blocks.1.": ".attn2.",
    ".norms.0.": ".norm1.",
    ".norms.1.": ".norm2.",
    ".ff_norm.": ".norm3.",
}
_FIRST_NORM = re.compile(r"(.+transformer_blocks\.\d+\.)norm1\.weight")
_THEIR_POSITIONS, _POSITIONS = "pos_encoder.pe", "pos_embed.pe"


def join_into(*, out: str, unet: str, adapter: str) -> None:
    """Write a U-Net with motion modules as a folder in diffusers' layout. Raises `SourceError` if they do not fit."""
    from diffusers import UNetMotionModel

    base, path = Path(unet), Path(adapter)
    config, motion = _of_folder(path) if path.is_dir() else _of_file(path)
    modules = _network(CLASS, config, path)
    remedy = ". Use motion modules of Stable Diffusion 1.x"
    check_tensors(f"{path} holds motion modules, but it", motion, modules, remedy)
    plain = _network("UNet2DConditionModel", read_json(base / CONFIG, "the unet's config"), base)
    try:
        with torch.device("meta"):
            network = UNetMotionModel.from_unet2d(plain, modules, load_weights=False)
    except Exception as failed:  # diffusers raises errors of several types
        raise SourceError(f"{path} does not fit this U-Net: {first_line(failed)}{remedy}.", path=path) from None
    tensors = {name: each for file in weight_files(base, _STEM) for name, each in load_file(file).items()}
    dtype = next(each.dtype for each in tensors.values() if each.is_floating_point())  # as diffusers does
    tensors |= {name: each.to(dtype).contiguous() for name, each in motion.items()}
    check_tensors(f"{path} holds motion modules for another U-Net: with this one it", tensors, network, remedy)
    (Path(out) / CONFIG).write_text(json.dumps(full_config(network), indent=1))
    save_file(tensors, Path(out) / f"{_STEM}.safetensors", metadata={"format": "pt"})


def _network(class_name: str, config: Mapping[str, Any], path: Path) -> Any:
    """Return a network of diffusers on the meta device. Raises `SourceError` if the config is invalid."""
    try:
        return network_of(class_name, config)
    except Exception as failed:  # diffusers raises errors of several types
        raise SourceError(f"the config of {path} is not a {class_name}'s: {first_line(failed)}.", path=path) from None


def _of_folder(folder: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    files = weight_files(folder, _STEM)
    tensors = {name: each for file in files for name, each in load_file(file).items()}
    return read_json(folder / CONFIG, "the config of motion modules"), _with_positions(tensors, folder)


def _of_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the config and the tensors of modules in a file, in the original layout or in diffusers'."""
    tensors = {_renamed(name): tensor for name, tensor in _tensors_in(path).items() if MARK in name}
    try:
        return _config_of(tensors), _with_positions(tensors, path)
    except (LookupError, ValueError, TypeError) as failed:
        raise SourceError(f"{path} holds motion modules of an unknown kind ({failed}).", path=path) from None


def _tensors_in(path: Path) -> Mapping[str, Tensor]:
    if path.suffix.lower() not in PICKLES:
        return dict(load_file(path))
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as failed:  # torch raises errors of any type
        message = f"cannot read {path}: it is no file of weights only ({first_line(failed):.200})."
        raise SourceError(message, path=path) from None
    content = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {str(name): each for name, each in content.items() if isinstance(each, Tensor)}
    if not any(MARK in name for name in tensors):
        message = f"{path} holds {len(tensors)} tensors, and none of motion modules. Use a file of AnimateDiff."
        raise SourceError(message, path=path)
    return tensors


def _renamed(name: str) -> str:
    """Return diffusers' name of a tensor. Training adds "module." or "unet." in front."""
    start = min((name.index(each) for each in ("down_blocks.", "up_blocks.", "mid_block.") if each in name), default=0)
    name = name[start:]
    for theirs, ours in _RENAMED.items():
        name = name.replace(theirs, ours)
    return name


def _with_positions(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the tensors with diffusers' table of positions in each block, where a file lacks it: sines.

    The original layout has one for each attention, with the same sines.
    """
    from diffusers.models.embeddings import SinusoidalPositionalEmbedding

    length = _length_of(tensors)
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(_THEIR_POSITIONS)}
    if length is None and path.is_dir():
        length = read_json(path / CONFIG, "the config of motion modules").get("motion_max_seq_length", 32)
    blocks = {match[1]: len(tensor) for name, tensor in kept.items() if (match := _FIRST_NORM.fullmatch(name))}
    for start, width in blocks.items():
        if f"{start}{_POSITIONS}" not in kept:
            kept[f"{start}{_POSITIONS}"] = SinusoidalPositionalEmbedding(width, max_seq_length=length).pe
    return kept


def _length_of(tensors: Mapping[str, Tensor]) -> int | None:
    tables = (tensor for name, tensor in tensors.items() if name.endswith((_THEIR_POSITIONS, _POSITIONS)))
    return next((int(table.shape[1]) for table in tables if table.ndim == 3), None)


def _config_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the config of modules: all but the heads (8) and the groups of the norm (32) is in their shapes."""
    places = [match for name in tensors if (match := _MODULE.fullmatch(name))]
    levels = 1 + max(int(match[2]) for match in places if match[1] == "down")
    layers = 1 + max(int(match[3]) for match in places if match[1] == "down")
    blocks = 1 + max(int(block[1]) for match in places if (block := _BLOCK.match(match[4])))
    length = _length_of(tensors)
    if max(levels, layers, blocks) > _LARGEST or length is None:
        raise ValueError(f"{levels} levels of {layers} layers, and {length} positions")
    first = "motion_modules.0.proj_in.weight"
    return {
        "block_out_channels": [int(tensors[f"down_blocks.{i}.{first}"].shape[0]) for i in range(levels)],
        "motion_layers_per_block": layers,
        "motion_transformer_layers_per_block": blocks,
        "motion_transformer_layers_per_mid_block": blocks,
        "motion_max_seq_length": length,
        "use_motion_mid_block": any(name.startswith("mid_block.") for name in tensors),
    }
