"""T2I-Adapters as parts of a source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calotype.errors import SourceError
from calotype.files.json_file import read_json
from calotype.plan.controls.t2i_adapter import ADAPTER

from ..misnamed import describe_other_folder
from ..parts import stem_of
from ..source import Source, located
from .file import open_t2i_adapter

_CLASS, _SEVERAL = "T2IAdapter", "MultiAdapter"


def add_t2i_adapters(source: Source, adapters: Sequence[str | Path], *, offline: bool) -> Source:
    """Return the source with T2I-Adapters: those that are passed, or else those that were saved with the model.

    Args:
        source: a Stable Diffusion model.
        adapters: the adapters, as folders, files or hub ids.
        offline: make no connection for hub ids.

    Raises:
        SourceError: a file is missing, damaged or not a T2I-Adapter.
    """
    paths = [located(each, ADAPTER, offline) for each in adapters] or own_adapters(source.folder)
    if not paths:
        return source
    if not source.tokenizers:
        message = f"{source.folder} takes no T2I-Adapter: it is not a model of Stable Diffusion with text."
        raise SourceError(message, path=source.folder)
    folders = {f"{ADAPTER}_{i}" if i else ADAPTER: _folder_of(path, source.configs) for i, path in enumerate(paths)}
    configs = {name: read_json(path / "config.json", f"the {name}'s config") for name, path in folders.items()}
    for name, config in configs.items():
        if (kind := config.get("_class_name")) != _CLASS:
            other = describe_other_folder(folders[name], ADAPTER) or f"{folders[name]} holds {kind!s:.80}."
            raise SourceError(f"{other} Expected a {_CLASS}.", path=folders[name], field="_class_name")
    return source.with_parts(folders, configs)


def own_adapters(model: Path) -> list[Path]:
    """Return the folders of the adapters that diffusers saved with a model: adapter, adapter_1, ..."""
    index = read_json(model / "model_index.json", "the list of parts of a model in diffusers' layout")
    listed = index.get("adapter")
    if not (isinstance(listed, list) and len(listed) == 2 and listed[1] in (_CLASS, _SEVERAL)):
        return []
    folders, name = [model / "adapter"], "adapter"
    while listed[1] == _SEVERAL:
        # diffusers reads adapter_2 after adapter_1, but writes adapter_1_2.
        names = (f"adapter_{len(folders)}", f"{name}_{len(folders)}")
        following = next((each for each in names if (model / each).is_dir()), None)
        if following is None:
            break
        folders.append(model / following)
        name = following
    return folders


def _folder_of(path: Path, configs: Mapping[str, Mapping[str, Any]]) -> Path:
    """Return the folder of an adapter; a file is converted at its first use. Raises `SourceError`."""
    if path.is_file():
        with_config = path.name == f"{stem_of(ADAPTER)}.safetensors" and path.with_name("config.json").is_file()
        return path.parent if with_config else open_t2i_adapter(path, configs["unet"], configs["vae"])
    if (path / "model_index.json").is_file():
        inside = own_adapters(path)
        remedy = f"Pass its adapter: {inside[0]}" if inside else "It has no T2I-Adapter"
        raise SourceError(f"{path} is a full model. {remedy}.", path=path)
    single = sorted(path.glob("*.safetensors"))
    if single and not (path / "config.json").is_file():
        message = f"{path / 'config.json'} is missing. To use a T2I-Adapter in one file, pass the file: {single[0]}"
        raise SourceError(message, path=path / "config.json")
    return path
