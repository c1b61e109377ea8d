"""Checks of the files that a plan opens: regular files inside its folder that the manifest lists in `files`.

A plan may come from a stranger who also computed its digest. So the checks reject paths and links that lead out of the
folder, and any unlisted file next to an artifact, because a backend might open it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors.schema import SchemaError
from ..weights.onnx import external_files

_FOLDER = "diffusers"  # the only form of artifact that is a folder and not a file
_GRAPH = ".onnx"


def check_listed_files(folder: Path, listed: Collection[str]) -> None:
    """Check that files are listed and that each is a regular file inside the folder. Raises `SchemaError`.

    Ignores missing files: the comparison of digests reports them.
    """
    if not listed:
        raise SchemaError("files", "is empty; expected every file of the plan with its size and SHA-256")
    for name in listed:
        _check_inside(name, "files")
    parents = {str(parent) for name in listed for parent in PurePosixPath(name).parents} - {"."}
    for name in sorted(parents):
        if not stat.S_ISDIR(_mode(folder / name, stat.S_IFDIR)):
            raise SchemaError("files", f"needs {folder / name}, which is a link or a file; expected a folder")
    for name in listed:
        if not stat.S_ISREG(_mode(folder / name, stat.S_IFREG)):
            raise SchemaError("files", f"lists {folder / name}, which is not a regular file (a link or a pipe)")


def check_opened_files(folder: Path, data: Mapping[str, Any]) -> None:
    """Check that the manifest lists every file that the plan opens.

    Args:
        folder: the plan's folder.
        data: the manifest, after `check_manifest` and `check_listed_files`.

    Raises:
        SchemaError: a file is not listed. The message names the field.
        OSError: a file cannot be read.
    """
    listed = data["files"]
    for where, path, form in _opened(data):
        _check_inside(path, where)
        if form and path not in listed:
            raise SchemaError(where, f"is {path!r}, which is not listed in files")
        if form == "onnx" and not path.endswith(_GRAPH):  # ONNX Runtime reads other suffixes as other formats
            raise SchemaError(where, f"is {path!r}; expected the name of an {_GRAPH} file")
        _check_neighbors(folder, str(PurePosixPath(path).parent) if form else path, where, listed)
    for name in listed:
        if name.endswith(_GRAPH):  # of artifacts, and the file next to an engine that a refit reads
            _check_external(folder, name, listed)


def _mode(path: Path, missing: int) -> int:
    try:
        return os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return missing


def _opened(data: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield each path in the manifest: its field, the path, and the form of a file (empty for a folder)."""
    for name, component in data["components"].items():
        for i, artifact in enumerate(component["artifacts"]):
            form = artifact["form"]
            yield f"components.{name}.artifacts[{i}].path", artifact["path"], "" if form == _FOLDER else form
    for name, path in data["tokenizers"].items():
        yield f"tokenizers.{name}", path, ""
    for name in ("samplers", "depth_estimator"):
        if data[name] is not None:
            yield name, data[name], ""


def _check_inside(path: str, where: str) -> None:
    """Check for a relative path below the plan's folder, in its shortest spelling."""
    parts = path.split("/")
    if path.startswith("/") or any(part in ("", ".", "..") for part in parts) or "\\" in path:
        raise SchemaError(where, f"is {path!r}; expected a path inside the plan's folder, without . and ..")


def _check_neighbors(folder: Path, inside: str, where: str, listed: Collection[str]) -> None:
    """Check that all files of an opened folder are listed, because libraries open further files on their own."""
    prefix = "" if inside == "." else f"{inside}/"
    if not any(name.startswith(prefix) for name in listed):
        raise SchemaError(where, f"is {inside!r}, a folder without files in the list")
    with os.scandir(folder / inside) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            is_folder = entry.is_dir(follow_symlinks=False)
            ignored = entry.name.startswith(".") or (not prefix and entry.name == "plan.json")  # no library opens these
            if not is_folder and not ignored and prefix + entry.name not in listed:
                raise SchemaError(
                    where, f"is in a folder that holds {prefix}{entry.name}, which is not listed in files"
                )


def _check_external(folder: Path, path: str, listed: Collection[str]) -> None:
    """Check that an ONNX file reads its weights only from listed files of its own folder."""
    try:
        names = external_files(folder / path)
    except ValueError as broken:
        raise SchemaError("files", f"lists {path}, which cannot be read as ONNX ({broken})") from None
    parent = str(PurePosixPath(path).parent)
    for name in sorted(names):
        if "/" in name or (name if parent == "." else f"{parent}/{name}") not in listed:
            expected = "expected a file of its own folder that is listed in files"
            raise SchemaError("files", f"lists {path}, which reads {name!r}; {expected}")
