"""Folders addressed by the digest of what they are built from. An entry appears complete, and one process builds it.

    store/KEY/             an entry: its files, and `entry.json` with their sizes and SHA-256, the key and the label
    store/KEY.lock         exists while the entry is built or removed
    store/.making-KEY/     the next entry, renamed when complete; `.dropped-KEY/` is the entry that it replaced

An entry is valid if `entry.json` has its seal and this key, and every file matches its size and SHA-256; else the entry
is built again. The modification time of `entry.json` is the last use. `locks` decides who may remove an entry.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from calotype.errors import SourceError
from calotype.files import locks
from calotype.files.cache import title
from calotype.files.digest import digest_of
from calotype.plan.integrity import stamps, stamps_from_json, verify

from .disk_errors import disk_errors_as_source_errors, full_disk_reason, no_space_message
from .folder_area import FolderArea
from .folders import clear, files_of, flush, set_aside, size_of

ENTRY = "entry.json"
_REMEDY = "the entry will be built again"


class Stored(NamedTuple):
    """An entry's folder, and the notes of the function that filled it."""

    folder: Path
    notes: Mapping[str, Any]


def key_of(parts: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plain data: of everything that the artifact depends on."""
    return digest_of(parts)


def fetch(key: str, make: Callable[[Path], Mapping[str, Any]], *, label: Mapping[str, str] | None = None) -> Stored:
    """Return an entry, and build it first if it does not exist.

    The entry is in use, and so is not removed, until this process ends.

    Args:
        key: the entry's key, from `key_of`.
        make: fills an empty folder and returns the notes.
        label: describes the entry in listings: `{"component": "unet", "precision": "fp16", ...}`.

    Raises:
        SourceError: the disk is full, or the store cannot be written. Errors of `make` pass through. No files are left.
    """
    folder = STORE.root / key
    with suppress(SourceError):  # damaged: reported below, under the lock
        if (notes := _valid_notes(folder)) is not None:
            return Stored(folder, notes)
    name = title(key, label or {})
    with disk_errors_as_source_errors(STORE.root, name):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locks.exclusive(folder.parent / f"{key}.lock", wait_for=name):
            try:
                notes = _valid_notes(folder)  # another process may have built it during the wait
            except SourceError as damaged:
                print(f"calotype: {damaged}", file=sys.stderr)
                notes = None
            return Stored(folder, _make(folder, make, label or {}) if notes is None else notes)


def has(key: str) -> bool:
    """Return whether an entry of this key exists. `fetch` checks whether it is intact."""
    return (STORE.root / key / ENTRY).is_file()


def _valid_notes(folder: Path) -> Mapping[str, Any] | None:
    """Mark an entry as in use and return its notes; None if it does not exist. Raises `SourceError` if damaged."""
    try:
        if not locks.use(folder / ENTRY):
            if os.path.lexists(folder):
                raise SourceError(f"{folder / ENTRY} is missing; {_REMEDY}.")
            return None
    except OSError as failed:
        raise SourceError(f"{folder / ENTRY} cannot be read ({failed.strerror}); {_REMEDY}.") from None
    notes: Mapping[str, Any] = _read(folder)["notes"]
    with suppress(OSError):  # a read-only store
        os.utime(folder / ENTRY)
    return notes


def _read(folder: Path) -> Mapping[str, Any]:
    """Return the `entry.json` of an intact entry. Raises `SourceError` for a damaged entry."""
    try:
        entry: dict[str, Any] = json.loads(_text(folder))
        if entry.pop("seal") != digest_of(entry):
            raise ValueError
        if entry["key"] != folder.name:
            raise SourceError(f"{folder / ENTRY} belongs to another entry; {_REMEDY}.")
        files = stamps_from_json(entry["files"])
    except (FileNotFoundError, NotADirectoryError):
        raise SourceError(f"{folder / ENTRY} is missing; {_REMEDY}.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise SourceError(f"{folder / ENTRY} is damaged; {_REMEDY}.") from None
    verify(folder, files, allowed=(ENTRY,), advice=_REMEDY)
    return entry


def _label(folder: Path) -> dict[str, str]:
    """Return the label in `entry.json`; an empty one if that file is damaged."""
    try:
        return {str(name): str(value) for name, value in json.loads(_text(folder))["label"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _text(folder: Path) -> str:
    if not (folder / ENTRY).is_file():  # reading a named pipe would block forever
        raise FileNotFoundError
    return (folder / ENTRY).read_text(encoding="utf-8")


def _make(folder: Path, make: Callable[[Path], Mapping[str, Any]], label: Mapping[str, str]) -> Mapping[str, Any]:
    # The names depend only on the key, and the lock is held: this clears leftovers of killed processes.
    fresh, dropped = STORE.leftovers(folder.name)
    clear(fresh)
    clear(dropped)
    fresh.mkdir()
    try:
        notes = _finish(fresh, {"key": folder.name, "label": dict(label), "notes": dict(make(fresh))})
        if os.path.lexists(folder):  # a damaged entry
            set_aside(folder, dropped, first=ENTRY)
        fresh.rename(folder)
    except BaseException as failed:
        written = size_of(fresh)
        shutil.rmtree(fresh, ignore_errors=True)
        if isinstance(failed, Exception) and (reason := full_disk_reason(failed)):
            raise SourceError(no_space_message(folder.parent, title(folder.name, label), reason, written)) from failed
        raise
    flush(folder.parent)
    locks.use(folder / ENTRY)
    with suppress(OSError):  # `gc` clears it later
        clear(dropped)
    return notes


def _finish(fresh: Path, description: Mapping[str, Any]) -> Mapping[str, Any]:
    """Write `entry.json`, flush the folder to the disk, and return the notes as they will be read.

    The flush comes before the rename: after a power loss an entry is complete or absent. The digests alone would not
    show lost bytes, because digests of large files are cached; so the files are flushed before they are hashed.
    """
    for path in files_of(fresh):
        flush(path)
    entry = json.loads(json.dumps({**description, "made": time.time(), "files": stamps(fresh)}))
    # The seal is the digest of the content, so that damaged notes are noticed as well.
    (fresh / ENTRY).write_text(json.dumps({**entry, "seal": digest_of(entry)}), encoding="utf-8")
    flush(fresh / ENTRY)
    for parent, _, _ in os.walk(fresh):
        flush(Path(parent))
    notes: Mapping[str, Any] = entry["notes"]
    return notes


STORE = FolderArea(name="store", mark=ENTRY, check=_read, label=_label)
