"""Folders of files on a disk: what is in them, onto the disk with it, and out of the way."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from calotype.files.digest import file_digest


def files_of(folder: Path) -> Iterator[Path]:
    """All files below, as far as they stay there while we look."""
    for where, _, names in os.walk(folder):
        yield from (Path(where, name) for name in names)


def size_of(folder: Path) -> int:
    """Bytes of all files below."""
    sizes = []
    for path in files_of(folder):
        with suppress(OSError):
            sizes.append(path.lstat().st_size)
    return sum(sizes)


def flush(path: Path) -> None:
    """What the system keeps of this file or folder in memory goes to the disk."""
    if path.is_file() or path.is_dir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as failed:
            if failed.errno != errno.EINVAL:  # a file system that cannot, for folders
                raise
        finally:
            os.close(descriptor)


def clear(path: Path) -> None:
    """Remove a folder or a file, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def set_aside(folder: Path, aside: Path, *, first: str) -> None:
    """Take a folder from its place: at once, or where the file system cannot, from the file `first` on."""
    try:
        folder.rename(aside)
    except OSError as failed:
        if failed.errno != errno.EXDEV:  # an overlay does not rename a folder of the image below it
            raise
        clear(folder / first)
        clear(folder)


def files_of_graph(graph: Path) -> list[Path]:
    """An ONNX file, and its weights beside it."""
    return sorted(graph.parent.glob(f"{graph.name}*"))


def digests_of(graph: Path) -> list[str]:
    """What a graph and its weights are, for keys."""
    return [file_digest(file) for file in files_of_graph(graph)]
