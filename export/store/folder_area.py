"""Areas of the cache whose entries are folders.

    AREA/KEY/            an entry
    AREA/KEY.lock        there while the entry is made or removed
    AREA/.making-KEY/    the next entry, renamed when it is complete; `.dropped-KEY/` is what it replaced

One file of each entry is the `mark`: its lock says that the entry is in use, its modification time when it was used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from calotype.errors import SourceError
from calotype.files import locks
from calotype.files.cache import Area, Entry

from .folders import clear, set_aside, size_of


@dataclass(frozen=True, kw_only=True)
class FolderArea(Area):
    """An area whose entries are folders. `check` raises `SourceError` for a damaged one; None: nothing can tell."""

    name: str
    mark: str
    check: Callable[[Path], object] | None
    label: Callable[[Path], Mapping[str, str]]

    @property
    def verifiable(self) -> bool:
        """Can `fault` tell an intact entry from a damaged one?"""
        return self.check is not None

    def hold(self, key: str) -> None:
        """Mark the entry as used now, and as in use until this process ends."""
        mark = self.root / key / self.mark
        with suppress(OSError):  # a cache that cannot be written
            mark.touch()
        locks.use(mark)

    def leftovers(self, key: str) -> tuple[Path, Path]:
        """Where an entry is made, and where it goes when it is replaced or removed: for who has its lock to clear."""
        return self.root / f".making-{key}", self.root / f".dropped-{key}"

    def fault(self, entry: Entry) -> str | None:
        """What is wrong with the entry; None for an intact one, and where nothing can tell."""
        try:
            if self.check is not None:
                self.check(entry.path)
            return None
        except SourceError as damaged:
            return str(damaged)

    def remove(self, entry: Entry) -> bool:
        """Remove the entry, unless it is being made, is in use, or was used since the listing."""
        fresh, dropped = self.leftovers(entry.key)
        with locks.exclusive(self.root / f"{entry.key}.lock") as mine:
            if not mine:
                return False
            with locks.unused(entry.path / self.mark) as free, suppress(FileNotFoundError):
                if not free or self._used(entry.path) != entry.used:
                    return False
                clear(dropped)
                set_aside(entry.path, dropped, first=self.mark)  # gone at once for all who look; then its gigabytes
            clear(dropped)
            clear(fresh)
        return True

    def clear_leftovers(self) -> None:
        """Remove what is half made or half removed by processes that have ended, and their locks."""
        there = list(self.root.iterdir()) if self.root.is_dir() else []
        left = [path.name for path in there if path.name.startswith((".making-", ".dropped-"))]
        keys = {name.split("-", 1)[1] for name in left} | {path.stem for path in there if path.suffix == ".lock"}
        for key in keys:
            with locks.exclusive(self.root / f"{key}.lock") as mine:
                for path in self.leftovers(key) if mine else ():
                    clear(path)

    def _paths(self) -> Iterator[Path]:
        return (path for path in self.root.iterdir() if path.is_dir() and not path.name.startswith("."))

    def _entry(self, path: Path) -> Entry:
        return Entry(
            area=self,
            key=path.name,
            path=path,
            label=self.label(path),
            size_bytes=size_of(path),
            used=self._used(path),
        )

    def _used(self, folder: Path) -> float:
        """The modification time of the mark, or of the folder where the mark is lost."""
        with suppress(OSError):
            return (folder / self.mark).stat().st_mtime
        return folder.stat().st_mtime
