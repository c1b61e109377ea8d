"""Integrity of a folder: record the size and SHA-256 of every file, and verify them later.

Used for the store's entries and for plans. Knows nothing of either: the caller passes the advice of the error.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..errors import SourceError
from ..files.digest import file_digest


def stamps(folder: Path, *, exclude: Collection[str] = ()) -> dict[str, tuple[int, str]]:
    """Return the size in bytes and the SHA-256 of every file below `folder`, by its relative path.

    `exclude` holds paths to leave out: the file that will hold the stamps. Raises `SourceError` for an invalid entry.
    """
    try:
        paths = {name: folder / name for name in _names(folder) if name not in exclude}
        return {name: (path.stat().st_size, file_digest(path)) for name, path in paths.items()}
    except OSError as failed:
        path = failed.filename or folder
        raise SourceError(f"cannot read {path}: {failed.strerror}.", path=path) from None


def stamps_from_json(data: Any) -> dict[str, tuple[int, str]]:
    """Parse the JSON form of `stamps`. Raises `ValueError` for other data, and for paths that leave the folder."""
    read = {}
    for name, stamp in data.items() if isinstance(data, dict) else [("", data)]:
        match stamp:
            case [int(size), str(digest)] if name and not os.path.isabs(name) and ".." not in Path(name).parts:
                read[name] = (size, digest)
            case _:
                raise ValueError(
                    f"invalid entry {name!r} in files: expected a path inside the folder, size and SHA-256"
                )
    return read


def verify(
    folder: Path, stamps: Mapping[str, tuple[int, str]], *, advice: str, allowed: Collection[str] | None = None
) -> None:
    """Verify every stamped file. Does not read large files again that did not change since they were last read.

    Args:
        folder: the folder.
        stamps: the result of `stamps`.
        advice: the end of the error message: what the user can do.
        allowed: further files that the folder may contain; None allows all.

    Raises:
        SourceError: a file is missing, changed or not allowed.
    """
    try:
        for name, (size, _) in stamps.items():  # sizes first, because that is cheap
            path = folder / name
            if (got := path.stat().st_size) != size:
                raise SourceError(f"{path} has {got} bytes; expected {size}", path=path)
        if allowed is not None and (others := set(_names(folder)) - set(stamps) - set(allowed)):
            path = folder / min(others)
            raise SourceError(f"{path} is not a file of this folder", path=path)
        for name, (_, digest) in stamps.items():
            path = folder / name
            if file_digest(path) != digest:
                raise SourceError(f"{path} is damaged: its SHA-256 differs from the recorded one", path=path)
        return
    except (FileNotFoundError, NotADirectoryError) as missing:
        fault = SourceError(f"{missing.filename} is missing", path=missing.filename)
    except OSError as failed:
        path = failed.filename or folder
        fault = SourceError(f"{path} cannot be read ({failed.strerror})", path=path)
    except SourceError as failed:
        fault = failed
    raise SourceError(f"{str(fault).rstrip('.')}; {advice}.", path=fault.path)


def _names(folder: Path) -> list[str]:
    """Return the relative paths of all entries that are not folders. A link to a folder counts as a file."""

    def refuse(failed: OSError) -> None:
        raise failed

    names = []
    for root, folders, files in os.walk(folder, onerror=refuse):
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        names += [os.path.relpath(os.path.join(root, name), folder) for name in (*files, *links)]
    return sorted(names)
