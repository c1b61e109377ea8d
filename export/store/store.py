"""Folders addressed by the digest of what they are built from. An entry appears complete, and one process builds it.

    store/KEY/             an entry: its files, and `entry.json` with their sizes and SHA-256, the key and the label
    store/KEY.lock         exists while the entry is built or removed
    store/.making-KEY/     the next entry, renamed when complete; `.dropped-KEY/` is the entry that it replaced

An entry is valid if `entry.json` has its seal and this key, and every file matches its size and SHA-256; else the entry
is built again. The modification time of `entry.json` is the last use. `locks` decides who may remove an entry.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from calotype.errors import SourceError
from calotype.files import locks
from calotype.files.cache import title
from calotype.files.digest import digest_of
from calotype.files.json_file import read_json
from calotype.plan.integrity import stamps, stamps_from_json, verify

from .folder_area import FolderArea
from .folders import clear, files_of, flush, set_aside, size_of

ENTRY = "entry.json"
_REMEDY = "the entry will be built again"
_FULL = (errno.ENOSPC, errno.EDQUOT)


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
    if (stored := intact(key)) is not None:  # a damaged one is reported below, under the lock
        return stored
    folder = STORE.root / key
    name = title(key, label or {})
    with _disk_errors_as_source_errors(STORE.root, name):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locks.exclusive(folder.parent / f"{key}.lock", wait_for=name):
            try:
                notes = _valid_notes(folder)  # another process may have built it during the wait
            except SourceError as damaged:
                print(f"calotype: {damaged}", file=sys.stderr)
                notes = None
            return Stored(folder, _make(folder, make, label or {}) if notes is None else notes)


def intact(key: str) -> Stored | None:
    """Return an entry, which is then in use until this process ends; None if it does not exist or is damaged."""
    folder = STORE.root / key
    with suppress(SourceError):
        if (notes := _valid_notes(folder)) is not None:
            return Stored(folder, notes)
    return None


def release(key: str) -> None:
    """End the use of an entry by this process: others may remove it."""
    locks.release(STORE.root / key / ENTRY)


def has(key: str) -> bool:
    """Return whether an entry of this key exists. `fetch` checks whether it is intact."""
    return (STORE.root / key / ENTRY).is_file()


def _valid_notes(folder: Path) -> Mapping[str, Any] | None:
    """Mark an entry as in use and return its notes; None if it does not exist. Raises `SourceError` if damaged."""
    try:
        if not locks.use(folder / ENTRY):
            if os.path.lexists(folder):
                raise SourceError(f"{folder / ENTRY} is missing; {_REMEDY}.", path=folder / ENTRY)
            return None
    except OSError as failed:
        raise SourceError(
            f"{folder / ENTRY} cannot be read ({failed.strerror}); {_REMEDY}.", path=folder / ENTRY
        ) from None
    notes: Mapping[str, Any] = _read(folder)["notes"]
    with suppress(OSError):  # a read-only store
        os.utime(folder / ENTRY)
    return notes


def _read(folder: Path) -> Mapping[str, Any]:
    """Return the `entry.json` of an intact entry. Raises `SourceError` for a damaged entry."""
    path = folder / ENTRY
    try:
        entry = read_json(path, _REMEDY)
        if entry.pop("seal") != digest_of(entry):
            raise ValueError
        key, files = entry["key"], stamps_from_json(entry["files"])
    except (SourceError, ValueError, KeyError, TypeError, AttributeError):
        raise SourceError(f"{path} is {'damaged' if path.is_file() else 'missing'}; {_REMEDY}.", path=path) from None
    if key != folder.name:
        raise SourceError(f"{path} belongs to another entry; {_REMEDY}.", path=path)
    verify(folder, files, allowed=(ENTRY,), advice=_REMEDY)
    return entry


def _label(folder: Path) -> dict[str, str]:
    with suppress(SourceError, KeyError, AttributeError):  # damaged
        return {str(name): str(value) for name, value in read_json(folder / ENTRY, _REMEDY)["label"].items()}
    return {}


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
        if isinstance(failed, Exception) and (reason := _full_disk_reason(failed)):
            raise SourceError(
                _no_space_message(folder.parent, title(folder.name, label), reason, written), path=folder.parent
            ) from failed
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


@contextmanager
def _disk_errors_as_source_errors(root: Path, name: str) -> Iterator[None]:
    """Raise `SourceError` for system errors: of the store at `root`, or of a file that building `name` reads."""
    try:
        yield
    except OSError as failed:
        path = failed.filename
        if failed.errno in _FULL:
            message = _no_space_message(root, name, str(failed.strerror), 0)
        elif isinstance(path, str) and not (Path(path).is_relative_to(root) or root.is_relative_to(path)):
            message = f"cannot build {name}: {path}: {failed.strerror}."
        else:
            message = (
                f"the store {root} cannot be written ({failed.strerror or failed}), so {name} cannot be built. "
                "Choose a writable folder with `export CALOTYPE_HOME=FOLDER`."
            )
        raise SourceError(message, path=path if isinstance(path, str) else root) from failed


def _full_disk_reason(failed: BaseException | None) -> str:
    """Return the system's message if a full disk caused the error, else "". Libraries wrap it or keep only its text."""
    while failed is not None:
        for code in _FULL:
            if getattr(failed, "errno", None) == code or os.strerror(code) in str(failed):
                return os.strerror(code)
        failed = failed.__cause__ or failed.__context__
    return ""


def _no_space_message(root: Path, name: str, reason: str, written_bytes: int) -> str:
    from rich.filesize import decimal  # a slow import

    free = "an unknown amount"
    with suppress(OSError):
        free = decimal(shutil.disk_usage(root.parent).free)
    written = f" after {decimal(written_bytes)}, which were removed" if written_bytes else ""
    return (
        f"the store {root} has no space for {name}: {reason}{written}; {free} is free now. Free space with "
        "`calotype cache gc --max-size 10GB`, or choose a larger disk with `export CALOTYPE_HOME=FOLDER`."
    )


STORE = FolderArea(name="store", mark=ENTRY, check=_read, label=_label)
