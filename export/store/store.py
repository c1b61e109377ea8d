"""Folders addressed by what they were made from. A folder appears whole or not at all, and is made by one at a time.

    store/KEY/             an entry: its files, and `entry.json` with their sizes and SHA-256, the key, and what it is
    store/KEY.lock         there while the entry is made or removed
    store/.making-KEY/     the next entry, renamed when it is whole; `.dropped-KEY/` is what it replaced

An entry is believed only if `entry.json` is sealed and speaks of this key, and every file is as it says; else it is
made again. `entry.json`'s own modification time is when the entry was last used. Who may remove an entry: `locks`.
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
from typing import Any

from calotype.errors import SourceError
from calotype.files import locks
from calotype.files.cache import title
from calotype.files.digest import digest_of
from calotype.plan.integrity import stamps, stamps_from_json, verify

from .disk_errors import full_disk, no_room, plainly
from .folder_area import FolderArea
from .folders import clear, files_of, flush, set_aside, size_of

ENTRY = "entry.json"
_MEND = "the entry will be made again"


def root() -> Path:
    """The store's folder, which need not exist yet."""
    return STORE.root


def key_of(parts: Mapping[str, Any]) -> str:
    """SHA-256 over plain data: everything that the artifact depends on."""
    return digest_of(parts)


def fetch(
    key: str, make: Callable[[Path], Mapping[str, Any]], *, label: Mapping[str, str] | None = None
) -> tuple[Path, Mapping[str, Any]]:
    """The entry's folder and its notes. `make(folder)` fills an empty folder and returns notes, if there is none.

    `label` says what the entry is (`{"component": "unet", "precision": "fp16", ...}`) to those who look at the store.
    The entry is in use, and so not removed, until this process ends. Raises whatever `make` raises (nothing is left
    behind), and `SourceError` where the store has no room or cannot be written.
    """
    folder = root() / key
    with suppress(SourceError):  # damaged: told below, by the one who makes it again
        if (notes := _believed(folder)) is not None:
            return folder, notes
    what = title(key, label or {})
    with plainly(root(), what):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locks.exclusive(folder.parent / f"{key}.lock", wait_for=what):
            try:
                notes = _believed(folder)  # another process may have made it while we waited
            except SourceError as damaged:
                print(f"calotype: {damaged}", file=sys.stderr)
                notes = None
            return folder, _make(folder, make, label or {}) if notes is None else notes


def has(key: str) -> bool:
    """Is there an entry of this key? Whether it is whole is found out when it is fetched."""
    return (root() / key / ENTRY).is_file()


def _believed(folder: Path) -> Mapping[str, Any] | None:
    """The notes of a whole entry, now in use; None where there is none. Raises `SourceError` for a damaged one."""
    try:
        if not locks.use(folder / ENTRY):
            if os.path.lexists(folder):
                raise SourceError(f"{folder / ENTRY} is missing; {_MEND}.")
            return None
    except OSError as failed:
        raise SourceError(f"{folder / ENTRY} cannot be read ({failed.strerror}); {_MEND}.") from None
    notes: Mapping[str, Any] = _read(folder)["notes"]
    with suppress(OSError):  # not in a store that cannot be written
        os.utime(folder / ENTRY)
    return notes


def _read(folder: Path) -> Mapping[str, Any]:
    """A whole entry's `entry.json`. Raises `SourceError` for a damaged entry."""
    try:
        entry = json.loads(_text(folder))
        if entry.pop("seal") != _seal(entry):
            raise ValueError
        if entry["key"] != folder.name:
            raise SourceError(f"{folder / ENTRY} is of another entry; {_MEND}.")
        files = stamps_from_json(entry["files"])
    except (FileNotFoundError, NotADirectoryError):
        raise SourceError(f"{folder / ENTRY} is missing; {_MEND}.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise SourceError(f"{folder / ENTRY} is damaged; {_MEND}.") from None
    verify(folder, files, allowed=(ENTRY,), advice=_MEND)
    whole: Mapping[str, Any] = entry
    return whole


def _label(folder: Path) -> dict[str, str]:
    """The label as `entry.json` has it; nothing where that is damaged."""
    try:
        return {str(name): str(value) for name, value in json.loads(_text(folder))["label"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _text(folder: Path) -> str:
    if not (folder / ENTRY).is_file():  # a pipe would be waited for without end
        raise FileNotFoundError
    return (folder / ENTRY).read_text(encoding="utf-8")


def _make(folder: Path, make: Callable[[Path], Mapping[str, Any]], label: Mapping[str, str]) -> Mapping[str, Any]:
    # One name a key, under its lock: what a killed process left is cleared by the next.
    fresh, dropped = STORE.leftovers(folder.name)
    clear(fresh)
    clear(dropped)
    fresh.mkdir()
    try:
        notes = _finish(fresh, {"key": folder.name, "label": dict(label), "notes": dict(make(fresh))})
        if os.path.lexists(folder):  # damaged, or we would not be here
            set_aside(folder, dropped, first=ENTRY)
        fresh.rename(folder)
    except BaseException as failed:
        written = size_of(fresh)
        shutil.rmtree(fresh, ignore_errors=True)
        if isinstance(failed, Exception) and (told := full_disk(failed)):
            raise SourceError(no_room(folder.parent, title(folder.name, label), told, written)) from failed
        raise
    flush(folder.parent)
    locks.use(folder / ENTRY)
    with suppress(OSError):  # `gc` clears what cannot be cleared now
        clear(dropped)
    return notes


def _finish(fresh: Path, said: Mapping[str, Any]) -> Mapping[str, Any]:
    """Write `entry.json`, and all of the folder to the disk; the notes as they will be read.

    To the disk before it has its name: after a loss of power an entry is whole or absent. Its digests could tell, but a
    large file's is remembered, and would speak for bytes that never arrived; so the files are flushed before that.
    Gigabytes take seconds to flush, now or later; making them takes minutes.
    """
    for path in files_of(fresh):
        flush(path)
    entry = json.loads(json.dumps({**said, "made": time.time(), "files": stamps(fresh)}))
    (fresh / ENTRY).write_text(json.dumps({**entry, "seal": _seal(entry)}), encoding="utf-8")
    flush(fresh / ENTRY)
    for where, _, _ in os.walk(fresh):
        flush(Path(where))
    notes: Mapping[str, Any] = entry["notes"]
    return notes


def _seal(entry: Mapping[str, Any]) -> str:
    """Of `entry.json` itself: a figure in the notes is as little to be believed damaged as a file is."""
    return digest_of(entry)


STORE = FolderArea(name="store", mark=ENTRY, check=_read, label=_label)
