"""Folders of a config and weights, checked before PyTorch's libraries open them: nothing in one leads out of it.

transformers and diffusers join the names in an index of shards to the folder without a look at them. transformers opens
another model where the folder holds an adapter of it, and where the config names a repository of kernels as its
attention it downloads code and runs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import SourceError
from ..files.json_file import read_json

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
    """Raise `SourceError` where PyTorch's libraries would open or download files outside of the folder."""
    if (folder / _ADAPTER).exists():
        raise SourceError(f"{folder} holds an adapter ({_ADAPTER}), not a model; pass it as a LoRA.")
    for index in sorted(folder.glob("*.index*.json")):
        shard_names(folder, read_json(index, "it lists the shards of the weights"))
    config = folder / "config.json"
    for name, value in _implementations(read_json(config, "it describes the network")):
        if "/" in value:
            raise SourceError(
                f"{config}: {name} is {value!r:.200}, code to be downloaded, which is never run; remove this field."
            )


def _implementations(config: Any) -> Iterator[tuple[str, str]]:
    """The fields of a config, at any depth, that choose an implementation (of attention, of experts)."""
    for name, value in config.items() if isinstance(config, dict) else ():
        if "_implementation" in name:
            yield name, str(value)
        else:
            yield from _implementations(value)
