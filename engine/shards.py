"""Folders of weights that PyTorch's libraries open: their indexes of shards lead to no other folder.

transformers and diffusers join the names in an index to the folder without a look at them, and transformers opens
another model where a folder holds an adapter of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calotype.errors import SourceError
from calotype.json_file import read_json

_ADAPTER = "adapter_config.json"


def shard_names(folder: Path, index: Mapping[str, Any]) -> list[str]:
    """The files that an index of shards names, each once. Raises `SourceError` unless all are names of safetensors."""
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise SourceError(f"the list of shards in {folder} names no files; download it again.")
    for name in shards.values():
        if not isinstance(name, str) or not name.endswith(".safetensors") or "/" in name or "\\" in name:
            raise SourceError(
                f"the list of shards in {folder} names {name!r:.200}; expected .safetensors files of that folder. "
                "Download the model from a source that you trust."
            )
    return sorted(set(shards.values()))


def check_weights_folder(folder: Path) -> None:
    """Raise `SourceError` where PyTorch's libraries would open files outside of a folder of config and weights."""
    if (folder / _ADAPTER).exists():
        raise SourceError(f"{folder} holds an adapter ({_ADAPTER}), not a model; pass it as a LoRA.")
    for index in sorted(folder.glob("*.index*.json")):
        shard_names(folder, read_json(index, "it lists the shards of the weights"))
