"""Folders of files: list, measure, flush to disk, and remove."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from calotype.files.digest import file_digest


def files_of(folder: Path) -> Iterator[Path]:
    """Yield all files below the folder. A file may vanish meanwhile."""
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)


def size_of(folder: Path) -> int:
    """Return the bytes of all files below the folder."""
    sizes = []
    for path in files_of(folder):
        with suppress(OSError):
            sizes.append(path.lstat().st_size)
    return sum(sizes)


def flush(path: Path) -> None:
    """Flush a file or folder to the disk."""
    if path.is_file() or path.is_dir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as failed:
            if failed.errno != errno.EINVAL:  # some file systems cannot flush folders
                raise
        finally:
            os.close(descriptor)


def clear(path: Path) -> None:
    """Remove a folder or a file if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def set_aside(folder: Path, aside: Path, *, first: str) -> None:
    """Rename the folder to `aside`. If the file system cannot, delete it, beginning with the file `first`."""
    try:
        folder.rename(aside)
    except OSError as failed:
        if failed.errno != errno.EXDEV:  # an overlay does not rename a folder of its lower layer
            raise
        clear(folder / first)
        clear(folder)


def files_of_graph(graph: Path) -> list[Path]:
    """Return an ONNX file and the files of its weights."""
    return sorted(graph.parent.glob(f"{graph.name}*"))


def digests_of(graph: Path) -> list[str]:
    """Return the digests of a graph and its weights, for keys."""
    return [file_digest(file) for file in files_of_graph(graph)]
