"""What is kept under `CALOTYPE_HOME`: areas of entries, with one listing, one rule of eviction and one verification.

    AREA/KEY              an entry that is one file: the content, then the content's SHA-256 in 32 bytes
    AREA/.KEY.PID-THREAD  a file that is being written; it gets its name when it is complete

The modification time of an entry is the time of its last use. Entries that are folders:
`calotype.export.store.folder_area`.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import SourceError
from . import locks
from .paths import home, write_atomic

_SEAL, _SEAL_BYTES = hashlib.sha256, 32
_FILE = re.compile(r"([0-9a-f]{64})(\.[a-z]+)?")
_UNFINISHED = re.compile(r"\..+\.\d+-\d+")  # the names that `write_atomic` writes under
_ABANDONED_S = 60  # a file that is being written changes more often than this
_CLOCKS_S = 2.0  # the clock of a file server may be ahead of ours by this much


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of an area, as it was when the area was listed."""

    area: Area
    key: str
    path: Path
    label: Mapping[str, str]
    size_bytes: int
    used: float  # seconds since 1970

    @property
    def title(self) -> str:
        """What a person calls the entry."""
        return title(self.key, self.label)

    @property
    def fault(self) -> str | None:
        """What is wrong with the entry; None for an intact one, and where the area cannot tell."""
        return self.area.fault(self)


class Area(ABC):
    """A folder below `CALOTYPE_HOME` with entries of one kind."""

    name: str

    @property
    def verifiable(self) -> bool:
        """Can `fault` tell an intact entry from a damaged one?"""
        return True

    @property
    def root(self) -> Path:
        """The folder, which need not exist yet."""
        return home() / self.name

    def entries(self) -> list[Entry]:
        """All entries, the least recently used first. Raises `SourceError` where the folder cannot be read."""
        listed = []
        try:
            for path in self._paths():
                with suppress(FileNotFoundError):  # another process has removed it
                    listed.append(self._entry(path))
        except FileNotFoundError:
            return []
        except OSError as failed:
            raise SourceError(f"cannot read the cache folder {self.root}: {failed.strerror}.") from None
        return least_recent_first(listed)

    @abstractmethod
    def fault(self, entry: Entry) -> str | None:
        """What is wrong with the entry; None for an intact one."""

    @abstractmethod
    def remove(self, entry: Entry) -> bool:
        """Remove the entry; False, and nothing is removed, where a process uses it or has used it since the listing."""

    @abstractmethod
    def clear_leftovers(self) -> None:
        """Remove what processes that were killed have left."""

    @abstractmethod
    def _paths(self) -> Iterator[Path]: ...

    @abstractmethod
    def _entry(self, path: Path) -> Entry: ...


@dataclass(frozen=True, kw_only=True)
class FileArea(Area):
    """An area whose entries are files.

    A cache that cannot be read or written costs time and never fails: `read` returns None, and `write` writes nothing.
    """

    name: str
    content: str  # what an entry is, for people
    suffix: str = ""
    limit_bytes: int | None = None  # of all entries; the least recently used ones make room for a new one

    def read(self, key: str) -> memoryview | None:
        """The entry's content, mapped; None where there is none or it is damaged.

        The entry is in use as long as the content is referenced.
        """
        with suppress(OSError, ValueError, SourceError):  # an empty file cannot be mapped
            path = self._path(key)
            if (descriptor := locks.share(path)) is not None:
                content = _intact(descriptor)
                if content is not None:
                    with suppress(OSError):  # in a cache that cannot be written
                        os.utime(path)
                return content
        return None

    def write(self, key: str, content: bytes) -> None:
        """Keep the content under the key."""
        with suppress(OSError, SourceError):
            if self.limit_bytes is not None:
                self.clear_leftovers()
                room = self.limit_bytes - len(content) - _SEAL_BYTES
                if evict(self.entries(), room).kept_bytes > room:
                    return
            write_atomic(self._path(key), content + _SEAL(content).digest())

    def fault(self, entry: Entry) -> str | None:
        """What is wrong with the entry; None for an intact one."""
        try:
            descriptor = locks.share(entry.path)
            if descriptor is None or _intact(descriptor) is not None:  # None: it has been removed since the listing
                return None
        except (OSError, ValueError) as failed:
            return f"cannot read {entry.path}: {failed}."
        return f"{entry.path} is damaged: its bytes are not those that were written."

    def remove(self, entry: Entry) -> bool:
        """Remove the entry; False where a process uses it or has used it since the listing."""
        with locks.unused(entry.path) as free, suppress(FileNotFoundError):
            if not free or entry.path.stat().st_mtime != entry.used:
                return False
            entry.path.unlink()
        return True

    def clear_leftovers(self) -> None:
        """Remove the files that processes were killed over."""
        for folder, _, names in os.walk(self.root):
            for path in (Path(folder, name) for name in names if _UNFINISHED.fullmatch(name)):
                with suppress(FileNotFoundError):
                    if abs(time.time() - path.stat().st_mtime) > _ABANDONED_S:  # the future is as far away as the past
                        path.unlink()

    def _path(self, key: str) -> Path:
        return self.root / f"{key}{self.suffix}"

    def _paths(self) -> Iterator[Path]:
        for folder, _, names in os.walk(self.root, onerror=_raise):
            paths = (Path(folder, name) for name in names if _FILE.fullmatch(name))
            yield from (path for path in paths if path.is_file() and not path.is_symlink())

    def _entry(self, path: Path) -> Entry:
        status = path.stat()
        key, label = path.name.partition(".")[0], {"kind": self.content}
        return Entry(area=self, key=key, path=path, label=label, size_bytes=status.st_size, used=status.st_mtime)


OPENVINO = FileArea(name="openvino", content="network compiled by OpenVINO", suffix=".blob", limit_bytes=2 << 30)
SAMPLERS = FileArea(name="samplers", content="sampler matrix")
DIGESTS = FileArea(name="digests", content="digest of a file")
TIMINGS = FileArea(name="timings", content="layer timings of TensorRT")
REFITTABLE = FileArea(name="refittable", content="place of a refittable engine")
FILE_AREAS = (OPENVINO, SAMPLERS, DIGESTS, TIMINGS, REFITTABLE)


@dataclass(frozen=True, kw_only=True)
class Evicted:
    """What `evict` did."""

    removed: tuple[Entry, ...]
    busy: tuple[Entry, ...]  # least recently used as well, but in use
    kept_bytes: int


def evict(entries: Iterable[Entry], max_bytes: int) -> Evicted:
    """Remove the least recently used entries until the rest is `max_bytes` or less; what is in use stays."""
    ordered = least_recent_first(entries)
    left = sum(entry.size_bytes for entry in ordered)
    removed, busy = [], []
    for entry in ordered:
        if left <= max_bytes:
            break
        if entry.area.remove(entry):
            removed.append(entry)
            left -= entry.size_bytes
        else:
            busy.append(entry)
    return Evicted(removed=tuple(removed), busy=tuple(busy), kept_bytes=left)


def least_recent_first(entries: Iterable[Entry]) -> list[Entry]:
    """Sort by last use. A time in the future comes from a wrong clock and counts as the oldest."""
    latest = time.time() + _CLOCKS_S
    return sorted(entries, key=lambda entry: entry.used if entry.used <= latest else float("-inf"))


def title(key: str, label: Mapping[str, str]) -> str:
    """What a person calls an entry."""
    return " ".join(" ".join(map(str, label.values())).split()) or f"entry {key[:12]}"


def _intact(descriptor: int) -> memoryview | None:
    """The content of an open file, mapped, if its seal holds. Closes the descriptor; the mapping keeps its lock."""
    try:
        # A copy: OpenVINO takes what may be written, and writes nothing.
        data = memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY))
    finally:
        os.close(descriptor)
    content = data[:-_SEAL_BYTES]
    return content if content and _SEAL(content).digest() == data[-_SEAL_BYTES:] else None


def _raise(failed: OSError) -> None:
    raise failed
