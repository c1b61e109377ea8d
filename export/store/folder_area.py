"""Areas of the cache whose entries are folders.

    AREA/KEY/            an entry
    AREA/KEY.lock        exists while the entry is built or removed
    AREA/.making-KEY/    the next entry, renamed when it is complete; `.dropped-KEY/` is the entry that it replaced

One file of each entry is the `mark`: its lock means that the entry is in use, its modification time is the last use.
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
    """An area whose entries are folders. `check` raises `SourceError` for a damaged one; None: not verifiable."""

    name: str
    mark: str
    check: Callable[[Path], object] | None
    label: Callable[[Path], Mapping[str, str]]

    @property
    def verifiable(self) -> bool:
        """Whether `fault` can tell an intact entry from a damaged one."""
        return self.check is not None

    def hold(self, key: str) -> None:
        """Mark the entry as used now, and as in use until this process ends."""
        mark = self.root / key / self.mark
        with suppress(OSError):  # a read-only cache
            mark.touch()
        locks.use(mark)

    def leftovers(self, key: str) -> tuple[Path, Path]:
        """Return the folders for building and for removing an entry. Only the lock's owner clears them."""
        return self.root / f".making-{key}", self.root / f".dropped-{key}"

    def fault(self, entry: Entry) -> str | None:
        """Return what is wrong with the entry; None if it is intact or not verifiable."""
        try:
            if self.check is not None:
                self.check(entry.path)
            return None
        except SourceError as damaged:
            return str(damaged)

    def remove(self, entry: Entry) -> bool:
        """Remove the entry and return True, unless it is being built, in use, or was used since the listing."""
        fresh, dropped = self.leftovers(entry.key)
        with locks.exclusive(self.root / f"{entry.key}.lock") as acquired:
            if not acquired:
                return False
            with locks.unused(entry.path / self.mark) as free, suppress(FileNotFoundError):
                if not free or self._used(entry.path) != entry.used:
                    return False
                clear(dropped)
                set_aside(entry.path, dropped, first=self.mark)  # invisible at once; then delete its gigabytes
            clear(dropped)
            clear(fresh)
        return True

    def clear_leftovers(self) -> None:
        """Remove unfinished and half-removed entries of processes that have ended, and their locks."""
        paths = list(self.root.iterdir()) if self.root.is_dir() else []
        leftovers = [path.name for path in paths if path.name.startswith((".making-", ".dropped-"))]
        keys = {name.split("-", 1)[1] for name in leftovers} | {path.stem for path in paths if path.suffix == ".lock"}
        for key in keys:
            with locks.exclusive(self.root / f"{key}.lock") as acquired:
                for path in self.leftovers(key) if acquired else ():
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
        """Return the modification time of the mark, or of the folder if the mark is missing."""
        with suppress(OSError):
            return (folder / self.mark).stat().st_mtime
        return folder.stat().st_mtime
