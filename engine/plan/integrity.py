"""Is a folder what was once written into it? Size and SHA-256 of every file, taken once and held against it later.

For the store's entries and for plans alike. Knows nothing of either: the caller says what mends a damage.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..errors import SourceError
from ..files.digest import file_digest


def stamps(folder: Path, *, beside: Collection[str] = ()) -> dict[str, tuple[int, str]]:
    """Size in bytes and SHA-256 of every file below `folder`, by its relative path.

    `beside` are left out: the file that will carry the stamps. Raises `SourceError` for what is no file or unreadable.
    """
    try:
        paths = {name: folder / name for name in _names(folder) if name not in beside}
        return {name: (path.stat().st_size, file_digest(path)) for name, path in paths.items()}
    except OSError as failed:
        raise SourceError(f"{failed.filename or folder} cannot be read ({failed.strerror}).") from None


def stamps_from_json(data: Any) -> dict[str, tuple[int, str]]:
    """What `json.dumps(stamps(...))` said. Raises `ValueError` for anything else, or paths out of the folder."""
    read = {}
    for name, stamp in data.items() if isinstance(data, dict) else [("", data)]:
        match stamp:
            case [int(size), str(digest)] if name and not os.path.isabs(name) and ".." not in Path(name).parts:
                read[name] = (size, digest)
            case _:
                raise ValueError(f"not the sizes and digests of files in a folder: {name!r}")
    return read


def verify(
    folder: Path, stamps: Mapping[str, tuple[int, str]], *, mend: str, beside: Collection[str] | None = None
) -> None:
    """Raise `SourceError` unless every stamped file is there and as it was: "<file> <what is wrong>; <mend>."

    Of files that nobody stamped only those in `beside` are allowed; None allows all. Large files that did not change
    since they were last read are not read again.
    """
    fault = _fault(folder, stamps, beside)
    if fault:
        raise SourceError(f"{fault}; {mend}.")


def _fault(folder: Path, stamps: Mapping[str, tuple[int, str]], beside: Collection[str] | None) -> str | None:
    """What is wrong; sizes before contents, as they cost nothing."""
    try:
        for name, (size, _) in stamps.items():
            got = (folder / name).stat().st_size
            if got != size:
                return f"{folder / name} is {got} bytes long and should be {size}"
        if beside is not None:
            for name in sorted(set(_names(folder)) - set(stamps) - set(beside)):
                return f"{folder / name} does not belong there"
        for name, (_, digest) in stamps.items():
            if file_digest(folder / name) != digest:
                return f"{folder / name} is damaged: its bytes are not those that were written"
    except (FileNotFoundError, NotADirectoryError) as missing:
        return f"{missing.filename} is missing"
    except OSError as failed:
        return f"{failed.filename or folder} cannot be read ({failed.strerror})"
    except SourceError as failed:
        return str(failed).rstrip(".")
    return None


def _names(folder: Path) -> list[str]:
    """Relative paths of all that is no folder; a link to a folder is not followed, and so is told as no file."""

    def refuse(failed: OSError) -> None:
        raise failed

    found = []
    for root, folders, files in os.walk(folder, onerror=refuse):
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        found += [os.path.relpath(os.path.join(root, name), folder) for name in (*files, *links)]
    return sorted(found)
