"""All areas of the cache in one table, and what leaves them: entries by name, or the least recently used.

An entry that is being made or is in use, by whatever process, stays (see `locks`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from calotype.errors import InputError, SourceError
from calotype.files.cache import FILE_AREAS, Entry, Evicted, evict, least_recent_first
from calotype.files.paths import home
from calotype.plan.plan import MANIFEST, read_plan

from .folder_area import FolderArea
from .store import STORE

# What the benchmarks keep. An environment is pip's, and what a peer converts is its own: no digests tell their damages.
ENVIRONMENTS = FolderArea(
    name="bench/environments", mark="pyvenv.cfg", check=None, label=lambda _: {"kind": "environment of a peer"}
)
CONVERTED = FolderArea(name="bench/converted", mark=".used", check=None, label=lambda _: {"kind": "files of peers"})
PLANS = FolderArea(name="bench/plans", mark=MANIFEST, check=read_plan, label=lambda path: {"plan": path.name})
AREAS = (STORE, *FILE_AREAS, ENVIRONMENTS, CONVERTED, PLANS)


def all_entries() -> list[Entry]:
    """The entries of all areas, the least recently used first. Raises `SourceError` where one cannot be read."""
    return least_recent_first(entry for area in AREAS for entry in area.entries())


def remove(keys: Sequence[str]) -> list[Entry]:
    """Remove entries, each named by its key or the first digits of it.

    Raises `InputError`, before anything is removed, where a name fits no entry or several; and where one is in use.
    """
    chosen = list({entry.path: entry for entry in _named(keys)}.values())
    with _plainly():
        busy = [entry for entry in chosen if not entry.area.remove(entry)]
    if busy:
        told = ", ".join(f"{entry.key[:12]} ({entry.title})" for entry in busy)
        raise InputError(f"in use, so not removed: {told}; try again when the process that uses or makes it has ended.")
    return chosen


def gc(max_bytes: int) -> Evicted:
    """Remove the least recently used entries until the rest is `max_bytes` or less, and what killed processes left."""
    entries = all_entries()
    with _plainly():
        swept = evict(entries, max_bytes)
        for area in AREAS:
            area.clear_leftovers()
    return swept


def _named(keys: Sequence[str]) -> Iterator[Entry]:
    there = all_entries()
    for key in keys:
        fits = [e for e in there if e.key == key] or [e for e in there if e.key.startswith(key)]
        if not key or not fits:
            raise InputError(f"no entry's key begins with {key!r}; `calotype cache ls` lists them.")
        if len(fits) > 1:
            told = ", ".join(e.key[:16] for e in fits)
            raise InputError(f"{len(fits)} entries' keys begin with {key!r}: {told}; say more of the one you mean.")
        yield fits[0]


@contextmanager
def _plainly() -> Iterator[None]:
    try:
        yield
    except OSError as failed:
        where: Path | str = failed.filename or home()
        raise SourceError(f"the cache {home()} cannot be cleared ({where}: {failed.strerror or failed}).") from failed
