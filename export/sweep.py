"""What leaves the store: entries by name or the least recently used, and what killed processes left behind.

An entry that is being made or is in use, by whatever process, stays (see `locks`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from calotype.digest import forget_others
from calotype.errors import InputError, SourceError
from calotype.export import locks
from calotype.export.folders import clear, files_of, set_aside
from calotype.export.store import ENTRY, Entry, entries, leftovers, root, title, used_at
from calotype.home import home

_ABANDONED_S = 60  # what `write_whole` writes has its name in far less


@dataclass(frozen=True, kw_only=True)
class Swept:
    """What `gc` did."""

    removed: tuple[Entry, ...]
    busy: tuple[Entry, ...]  # older than what was asked to stay, but in use
    kept_bytes: int


def remove(keys: Sequence[str]) -> list[Entry]:
    """Remove entries, each named by its key or the first digits of it.

    Raises `InputError`, before anything is removed, where a name fits no entry or several; and where one is in use.
    """
    chosen = list({entry.key: entry for entry in _named(keys)}.values())
    with _plainly():
        busy = [entry for entry in chosen if not _drop(entry)]
    if busy:
        told = ", ".join(f"{entry.key[:12]} ({title(entry.key, entry.label)})" for entry in busy)
        raise InputError(f"in use, so not removed: {told}; try again when the process that uses or makes it has ended.")
    return chosen


def gc(max_bytes: int) -> Swept:
    """Remove the least recently used entries until the rest is `max_bytes` or less, and what killed processes left."""
    listed = entries()
    left = sum(entry.size_bytes for entry in listed)
    removed, busy = [], []
    with _plainly():
        for entry in listed:
            if left <= max_bytes:
                break
            if _drop(entry):
                removed.append(entry)
                left -= entry.size_bytes
            else:
                busy.append(entry)
        _clear_leftovers()
        forget_others(files_of(root()))
    return Swept(removed=tuple(removed), busy=tuple(busy), kept_bytes=left)


def _named(keys: Sequence[str]) -> Iterator[Entry]:
    there = {entry.key: entry for entry in entries()}
    for key in keys:
        fits = [key] if key in there else [k for k in there if k.startswith(key)]
        if not key or not fits:
            raise InputError(f"no entry's key begins with {key!r}; `calotype store ls` lists them.")
        if len(fits) > 1:
            told = ", ".join(k[:16] for k in fits)
            raise InputError(f"{len(fits)} entries' keys begin with {key!r}: {told}; say more of the one you mean.")
        yield there[fits[0]]


def _drop(entry: Entry) -> bool:
    """Remove it, unless it is being made, is in use, or was used since we looked."""
    fresh, dropped = leftovers(entry.key)
    with locks.exclusive(root() / f"{entry.key}.lock") as mine:
        if not mine:
            return False
        with locks.unused(entry.folder / ENTRY) as free, suppress(FileNotFoundError):
            if not free or used_at(entry.folder) != entry.used:
                return False
            clear(dropped)
            set_aside(entry.folder, dropped, first=ENTRY)  # gone at once for all who look; then its gigabytes
        clear(dropped)
        clear(fresh)
    return True


def _clear_leftovers() -> None:
    """What is half made or half removed by processes that have ended, their locks, and files that never got a name."""
    there = list(root().iterdir()) if root().is_dir() else []
    left = [path.name for path in there if path.name.startswith((".making-", ".dropped-"))]
    keys = {name.split("-", 1)[1] for name in left} | {path.stem for path in there if path.suffix == ".lock"}
    for key in keys:
        with locks.exclusive(root() / f"{key}.lock") as mine:
            for path in leftovers(key) if mine else ():
                clear(path)
    for folder in (home() / "digests", home() / "samplers"):
        for path in folder.glob(".*"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - _ABANDONED_S:
                    path.unlink()


@contextmanager
def _plainly() -> Iterator[None]:
    try:
        yield
    except OSError as failed:
        where: Path | str = failed.filename or root()
        raise SourceError(f"the store {root()} cannot be cleared ({where}: {failed.strerror or failed}).") from failed
