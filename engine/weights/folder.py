"""Checks of a folder with a config and weights, before transformers or diffusers opens it.

Both libraries append the file names of a shard index to the folder without a check. transformers also opens another
model if the folder holds an adapter, and downloads and runs code if the config names a repository of kernels as its
attention implementation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import SourceError
from ..files.json_file import read_json

_ADAPTER = "adapter_config.json"


def shard_names(folder: Path, index: Mapping[str, Any]) -> list[str]:
    """Return the files of a shard index. Raises `SourceError` unless all are .safetensors files of the folder."""
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not shards:
        message = f"the shard index in {folder} names no files. Download the model again."
        raise SourceError(message, path=folder, field="weight_map")
    for name in shards.values():
        if not isinstance(name, str) or not name.endswith(".safetensors") or "/" in name or "\\" in name:
            raise SourceError(
                f"the shard index in {folder} names {name!r:.200}; expected .safetensors files of that folder. "
                "Download the model from a source that you trust.",
                path=folder,
                field="weight_map",
            )
    return sorted(set(shards.values()))


def check_weights_folder(folder: Path) -> None:
    """Check that transformers and diffusers open only files of the folder. Raises `SourceError`."""
    if (folder / _ADAPTER).exists():
        message = f"{folder} holds an adapter ({_ADAPTER}), not a model. Pass it as a LoRA."
        raise SourceError(message, path=folder / _ADAPTER)
    for index in sorted(folder.glob("*.index*.json")):
        shard_names(folder, read_json(index, "it lists the shards of the weights"))
    config = folder / "config.json"
    for name, value in _implementations(read_json(config, "it describes the network")):
        if "/" in value:
            raise SourceError(
                f"{config}: {name} is {value!r:.200}, a code repository. Calotype runs no downloaded code. Remove it.",
                path=config,
                field=name,
            )


def _implementations(config: Any) -> Iterator[tuple[str, str]]:
    """Yield the fields of a config, at any depth, that select an implementation (of attention, of experts)."""
    for name, value in config.items() if isinstance(config, dict) else ():
        if "_implementation" in name:
            yield name, str(value)
        else:
            yield from _implementations(value)
