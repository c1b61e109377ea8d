"""Which files a plan may open: plain files inside its folder, listed in `files` and so verified.

A plan may come from a stranger who computed its digest. So paths and links that lead outside of the folder are refused,
and any file beside an artifact that is not listed, which a backend might open.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors.schema import SchemaError
from ..weights.onnx import external_files

_FOLDER = "diffusers"  # the form of artifact that is a folder; the others are a file
_GRAPH = ".onnx"


def check_listed_files(folder: Path, listed: Collection[str]) -> None:
    """Raise `SchemaError` unless files are listed, each inside the folder, and none reached through a link or a pipe.

    What is missing is left to the comparison of digests.
    """
    if not listed:
        raise SchemaError("files is empty; expected every file of the plan with its size and SHA-256")
    for name in listed:
        _check_inside(name, "files")
    parents = {str(parent) for name in listed for parent in PurePosixPath(name).parents} - {"."}
    for name in sorted(parents):
        if not stat.S_ISDIR(_mode(folder / name, stat.S_IFDIR)):
            raise SchemaError(f"{folder / name} is not a folder but a link or a file, and links are not followed")
    for name in listed:
        if not stat.S_ISREG(_mode(folder / name, stat.S_IFREG)):
            raise SchemaError(f"{folder / name} is not a regular file; links and pipes are not followed")


def check_opened_files(folder: Path, data: Mapping[str, Any]) -> None:
    """Raise `SchemaError` that names the field, or `OSError`, unless all that the plan opens is in its listed files.

    `data` passed `plan_schema.check_manifest`, and its listed files `check_listed_files`.
    """
    listed = data["files"]
    for where, path, form in _opened(data):
        _check_inside(path, where)
        if form and path not in listed:
            raise SchemaError(f"{where} is {path!r}, which files does not list")
        if form == "onnx" and not path.endswith(_GRAPH):  # ONNX Runtime takes other suffixes for other formats
            raise SchemaError(f"{where} is {path!r}; expected the name of an {_GRAPH} file")
        _check_neighbors(folder, str(PurePosixPath(path).parent) if form else path, where, listed)
    for name in listed:
        if name.endswith(_GRAPH):  # those of artifacts, and those beside an engine, which a refit reads
            _check_external(folder, name, listed)


def _mode(path: Path, missing: int) -> int:
    try:
        return os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return missing


def _opened(data: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Each path that the manifest names: its field, the path, and a file's form, which is empty for a folder."""
    for name, component in data["components"].items():
        for i, artifact in enumerate(component["artifacts"]):
            form = artifact["form"]
            yield f"components.{name}.artifacts[{i}].path", artifact["path"], "" if form == _FOLDER else form
    for name, path in data["tokenizers"].items():
        yield f"tokenizers.{name}", path, ""
    if data["samplers"] is not None:
        yield "samplers", data["samplers"], ""


def _check_inside(path: str, where: str) -> None:
    """A relative path in its shortest spelling, below the plan's folder."""
    parts = path.split("/")
    if path.startswith("/") or any(part in ("", ".", "..") for part in parts) or "\\" in path:
        raise SchemaError(f"{where} has {path!r}; expected a path inside the plan's folder, without . and ..")


def _check_neighbors(folder: Path, inside: str, where: str, listed: Collection[str]) -> None:
    """All of the files in a folder from which something is opened are listed: libraries look for more by themselves."""
    prefix = "" if inside == "." else f"{inside}/"
    if not any(name.startswith(prefix) for name in listed):
        raise SchemaError(f"{where} is {inside!r}, a folder of which files lists nothing")
    with os.scandir(folder / inside) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            is_folder = entry.is_dir(follow_symlinks=False)
            own = entry.name.startswith(".") or (not prefix and entry.name == "plan.json")  # no library opens these
            if not is_folder and not own and prefix + entry.name not in listed:
                raise SchemaError(f"{where}: {prefix}{entry.name} lies beside it, and files does not list it")


def _check_external(folder: Path, path: str, listed: Collection[str]) -> None:
    """An ONNX file reads its weights from listed files of its own folder alone."""
    try:
        names = external_files(folder / path)
    except ValueError as broken:
        raise SchemaError(f"{path} cannot be read as ONNX ({broken})") from None
    parent = str(PurePosixPath(path).parent)
    for name in sorted(names):
        if "/" in name or (name if parent == "." else f"{parent}/{name}") not in listed:
            raise SchemaError(f"{path} reads {name!r}; expected a file of its own folder that files lists")
