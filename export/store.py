"""Folders addressed by what they were made from. A folder appears whole or not at all, and is made by one at a time.

Each entry carries `entry.json` with the size and SHA-256 of its files, so that a damaged one is noticed and made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from calotype.errors import SourceError
from calotype.export.digest import file_digest
from calotype.home import home

ENTRY = "entry.json"


def key_of(parts: Mapping[str, Any]) -> str:
    """SHA-256 over plain data: everything that the artefact depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def fetch(key: str, make: Callable[[Path], Mapping[str, Any]]) -> tuple[Path, Mapping[str, Any]]:
    """The entry's folder and its notes. `make(folder)` fills an empty folder and returns notes, if there is none.

    Raises whatever `make` raises (nothing is left behind), and `SourceError` where the store cannot be written.
    """
    root = home() / "store"
    folder = root / key
    notes = _read(folder)
    if notes is not None:
        return folder, notes
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f"{key}.lock"):
            notes = _read(folder)  # another process may have made it while we waited
            return (folder, notes) if notes is not None else (folder, _make(folder, make))
    except OSError as failed:
        raise SourceError(
            f"the store {root} cannot be written ({failed.strerror or failed}); "
            "set CALOTYPE_HOME to a folder with room."
        ) from None


def _make(folder: Path, make: Callable[[Path], Mapping[str, Any]]) -> Mapping[str, Any]:
    # One name a key, under its lock: what a killed process left is cleared by the next.
    fresh = folder.parent / f".making-{folder.name}"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        notes = dict(make(fresh))
        files = {str(p.relative_to(fresh)): [p.stat().st_size, file_digest(p)] for p in _files(fresh)}
        (fresh / ENTRY).write_text(json.dumps({"files": files, "notes": notes}))
        shutil.rmtree(folder, ignore_errors=True)  # what is there is damaged, or we would not be here
        fresh.rename(folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return notes


def _read(folder: Path) -> Mapping[str, Any] | None:
    """The notes of a whole entry; None where there is none, or a damaged one."""
    try:
        entry = json.loads((folder / ENTRY).read_text())
        for name, (size, digest) in entry["files"].items():
            path = folder / name
            if path.stat().st_size != size or file_digest(path) != digest:
                return None
        notes: Mapping[str, Any] = entry["notes"]
        return notes
    except (OSError, SourceError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _files(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.rglob("*")) if p.is_file()]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file; it is released by the system if this process dies."""
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
