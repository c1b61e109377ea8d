"""The areas of the cache, and the removal of entries by key or by least recent use.

An entry that any process is building or using stays (see `locks`).
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

# Caches of the benchmarks. Environments are written by pip, and converted files by peers, so neither has digests.
ENVIRONMENTS = FolderArea(
    name="bench/environments", mark="pyvenv.cfg", check=None, label=lambda _: {"kind": "environment of a peer"}
)
CONVERTED = FolderArea(name="bench/converted", mark=".used", check=None, label=lambda _: {"kind": "files of peers"})
PLANS = FolderArea(name="bench/plans", mark=MANIFEST, check=read_plan, label=lambda path: {"plan": path.name})
AREAS = (STORE, *FILE_AREAS, ENVIRONMENTS, CONVERTED, PLANS)


def all_entries() -> list[Entry]:
    """Return the entries of all areas, least recently used first. Raises `SourceError` if an area cannot be read."""
    return least_recent_first(entry for area in AREAS for entry in area.entries())


def remove(keys: Sequence[str]) -> list[Entry]:
    """Remove entries by their keys, or by the first digits of their keys.

    Raises `InputError` before any removal if a prefix matches no entry or several; and after it if one is in use.
    """
    chosen = list({entry.path: entry for entry in _matching(keys)}.values())
    with _as_source_error():
        busy = [entry for entry in chosen if not entry.area.remove(entry)]
    if busy:
        titles = ", ".join(f"{entry.key[:12]} ({entry.title})" for entry in busy)
        raise InputError(
            f"cannot remove entries in use: {titles}. Try again when the process that uses or builds it ends.",
            argument="keys",
        )
    return chosen


def gc(max_bytes: int) -> Evicted:
    """Remove least recently used entries until at most `max_bytes` remain, and leftovers of killed processes."""
    entries = all_entries()
    with _as_source_error():
        swept = evict(entries, max_bytes)
        for area in AREAS:
            area.clear_leftovers()
    return swept


def _matching(keys: Sequence[str]) -> Iterator[Entry]:
    entries = all_entries()
    for key in keys:
        matches = [e for e in entries if e.key == key] or [e for e in entries if e.key.startswith(key)]
        if not key or not matches:
            raise InputError(
                f"no key begins with {key!r}. List the keys with `calotype cache ls`.", argument="keys", got=key
            )
        if len(matches) > 1:
            shown = ", ".join(e.key[:16] for e in matches)
            raise InputError(
                f"{len(matches)} keys begin with {key!r}: {shown}. Give more digits.", argument="keys", got=key
            )
        yield matches[0]


@contextmanager
def _as_source_error() -> Iterator[None]:
    try:
        yield
    except OSError as failed:
        path: Path | str = failed.filename or home()
        raise SourceError(
            f"the cache {home()} cannot be cleared ({path}: {failed.strerror or failed}).", path=path
        ) from failed
