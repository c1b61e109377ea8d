"""Motion modules as a part of a source: its U-Net becomes one with the modules inside, a folder of the store."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from calotype.errors import SourceError
from calotype.errors.printable import printable
from calotype.files.digest import file_digest
from calotype.files.json_file import read_json
from calotype.plan.video.motion import ADAPTER, has_motion

from ...steps.stored_step import StoredStep
from ...steps.versions import versions
from ...store.store import key_of
from ..misnamed import describe_other_folder
from ..parts import stem_of
from ..single_file import describe_contents
from ..source import Source, located
from ..weight_files import PICKLES, check_safetensors, weight_files

CLASS, CONFIG = "MotionAdapter", "config.json"
MARK = "motion_modules."  # in the names of all tensors of motion modules
_JOIN = "calotype.export.sources.motion_adapter.join:join_into"
_JOINER = 1  # increased when joining writes other files
_PLAIN = "UNet2DConditionModel"


def add_motion_adapter(source: Source, adapter: str | Path | None, *, offline: bool) -> Source:
    """Return the source with motion modules in its U-Net: those that are passed, or those saved with the model.

    Args:
        source: a model of Stable Diffusion 1.x.
        adapter: the modules, as a folder, a file or a hub id; None for the model's own.
        offline: make no connection for hub ids.

    Raises:
        SourceError: a file is missing, damaged or no motion modules, or they do not fit the U-Net.
    """
    unet = source.configs["unet"]
    if has_motion(unet):
        if adapter is None:
            return source
        message = f"{source.model} has motion modules of its own. Omit motion_adapter, or load the base model."
        raise SourceError(message, path=source.folder, field=ADAPTER)
    path = _own(source.folder) if adapter is None else _located(adapter, offline)
    if path is None:
        return source
    if [*source.tokenizers] != ["text_encoder"] or unet.get("_class_name") != _PLAIN:
        message = f"{source.folder} takes no motion modules: it is not a model of Stable Diffusion 1.x."
        raise SourceError(message, path=source.folder)
    return _joined(source, _file_or_folder(path))


def _own(model: Path) -> Path | None:
    """Return the folder of the motion modules that diffusers saved with a model; None without any."""
    listed = read_json(model / "model_index.json", "the list of parts of a model in diffusers' layout").get(ADAPTER)
    return model / ADAPTER if isinstance(listed, list) and listed[-1:] == [CLASS] else None


def _located(adapter: str | Path, offline: bool) -> Path:
    """Return the folder or file that the user means. Pickles are read without running code (`join`)."""
    try:
        path = Path(adapter).expanduser()
        if path.suffix.lower() in PICKLES and path.is_file():
            return path.absolute()
    except (OSError, RuntimeError, ValueError):
        pass  # `located` says what is wrong
    return located(adapter, ADAPTER, offline)


def _file_or_folder(path: Path) -> Path:
    """Return the folder of a MotionAdapter, or the file with the modules' tensors. Raises `SourceError`."""
    if path.is_file():
        with_config = path.name == f"{stem_of(ADAPTER)}.safetensors" and path.with_name(CONFIG).is_file()
        if with_config:
            return _file_or_folder(path.parent)
        if path.suffix.lower() not in PICKLES and not any(MARK in name for name in check_safetensors(path).shapes):
            contents = describe_contents(check_safetensors(path), ADAPTER)
            message = f"{path} holds {contents}; expected motion modules, in the original layout or diffusers'."
            raise SourceError(message, path=path)
        return path
    if (path / "model_index.json").is_file():
        inside = _own(path)
        remedy = f"Pass its {ADAPTER}: {inside}" if inside else "It has no motion modules"
        raise SourceError(f"{path} is a full model. {remedy}.", path=path)
    if not (path / CONFIG).is_file():
        single = sorted(each for each in path.glob("*") if each.suffix in (".safetensors", *PICKLES))
        hint = f" To use motion modules in one file, pass the file: {single[0]}" if single else ""
        raise SourceError(f"{path / CONFIG} is missing.{hint}", path=path / CONFIG)
    if (kind := read_json(path / CONFIG, "the config of motion modules").get("_class_name")) != CLASS:
        other = describe_other_folder(path, ADAPTER) or f"{path} holds {kind!s:.80}."
        raise SourceError(f"{other} Expected a {CLASS}.", path=path, field="_class_name")
    weight_files(path, stem_of(ADAPTER))
    return path


def _joined(source: Source, adapter: Path) -> Source:
    """Return the source whose U-Net has the modules of a file or folder, joined at the first use."""
    files = [adapter] if adapter.is_file() else weight_files(adapter, stem_of(ADAPTER))
    config = {} if adapter.is_file() else read_json(adapter / CONFIG, "the config of motion modules")
    step = StoredStep(
        depends_on={
            "unet": [source.digests["unet"], source.configs["unet"]],
            "motion": [config, *map(file_digest, files)],
            "tools": versions(),
            "joiner": _JOINER,
        },
        label={"component": "unet", "kind": "motion modules", "model": source.model},
    )
    if not step.is_stored:
        line = f"calotype: joining the U-Net of {source.model} and the motion modules of {adapter.name} (once)"
        print(printable(line), file=sys.stderr)
    unet = str(source.folders["unet"])
    folder = step.run_in_child("joining the motion modules", _JOIN, unet=unet, adapter=str(adapter)).folder
    return replace(
        source,
        folders={**source.folders, "unet": folder},
        configs={**source.configs, "unet": read_json(folder / CONFIG, "the unet's config")},
        digests={**source.digests, "unet": key_of({folder.name: "unet"})},
        generated=source.generated | {"unet"},
    )
