"""The cache under `CALOTYPE_HOME`: areas of entries, with one listing, one eviction rule and one verification.

    AREA/KEY              an entry that is one file: the content, then its SHA-256 in 32 bytes
    AREA/.KEY.PID-THREAD  an unfinished file, which is renamed when it is complete

The modification time of an entry is the time of its last use. For entries that are folders see
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
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from ..errors import SourceError
from . import locks
from .paths import home, write_atomic

_SEAL, _SEAL_BYTES = hashlib.sha256, 32
_FILE = re.compile(r"([0-9a-f]{64})(\.[a-z]+)?")
_UNFINISHED = re.compile(r"\..+\.\d+-\d+")  # the temporary names of `write_atomic`
_ABANDONED_S = 60  # a file in progress changes more often than this
_CLOCKS_S = 2.0  # the clock of a file server may be ahead of ours by this much
_WRITES: ContextVar[bool] = ContextVar("writes", default=True)


@contextmanager
def only_reading() -> Iterator[None]:
    """Add no files to the cache in this thread: for work at sizes that nobody asks for again."""
    token = _WRITES.set(False)
    try:
        yield
    finally:
        _WRITES.reset(token)


def writes() -> bool:
    """Return whether files are added to the cache."""
    return _WRITES.get()


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of an area, at the time of the listing."""

    area: Area
    key: str
    path: Path
    label: Mapping[str, str]
    size_bytes: int
    used: float  # seconds since 1970

    @property
    def title(self) -> str:
        """A readable name of the entry."""
        return title(self.key, self.label)

    @property
    def fault(self) -> str | None:
        """The fault of the entry; None if it is intact, or if the area cannot verify it."""
        return self.area.fault(self)


class Area(ABC):
    """A folder below `CALOTYPE_HOME` with entries of one kind."""

    name: str

    @property
    def verifiable(self) -> bool:
        """Whether `fault` can verify an entry."""
        return True

    @property
    def root(self) -> Path:
        """The folder, which may not exist yet."""
        return home() / self.name

    def entries(self) -> list[Entry]:
        """Return all entries, the least recently used first. Raises `SourceError` if the folder cannot be read."""
        listed = []
        try:
            for path in self._paths():
                with suppress(FileNotFoundError):  # another process has removed it
                    listed.append(self._entry(path))
        except FileNotFoundError:
            return []
        except OSError as failed:
            raise SourceError(f"cannot read the cache folder {self.root}: {failed.strerror}.", path=self.root) from None
        return least_recent_first(listed)

    @abstractmethod
    def fault(self, entry: Entry) -> str | None:
        """Return the fault of the entry; None if it is intact."""

    @abstractmethod
    def remove(self, entry: Entry) -> bool:
        """Remove the entry. Returns False and keeps it if a process uses it or has used it since the listing."""

    @abstractmethod
    def clear_leftovers(self) -> None:
        """Remove unfinished files of killed processes."""

    @abstractmethod
    def _paths(self) -> Iterator[Path]: ...

    @abstractmethod
    def _entry(self, path: Path) -> Entry: ...


@dataclass(frozen=True, kw_only=True)
class FileArea(Area):
    """An area whose entries are files.

    A cache that cannot be read or written only costs time: `read` returns None, and `write` does nothing.
    """

    name: str
    content: str  # description of an entry
    suffix: str = ""
    limit_bytes: int | None = None  # of all entries: `write` evicts the least recently used ones

    def read(self, key: str) -> memoryview | None:
        """Return the content of an entry, memory-mapped; None if it does not exist or is damaged.

        The entry is in use as long as the content is referenced.
        """
        with suppress(OSError, ValueError, SourceError):  # an empty file cannot be mapped
            path = self._path(key)
            if (descriptor := locks.share(path)) is not None:
                content = _intact(descriptor)
                if content is not None:
                    with suppress(OSError):  # a read-only cache
                        os.utime(path)
                return content
        return None

    def write(self, key: str, content: bytes) -> None:
        """Store the content under the key."""
        if not writes():
            return
        with suppress(OSError, SourceError):
            if self.limit_bytes is not None:
                self.clear_leftovers()
                room = self.limit_bytes - len(content) - _SEAL_BYTES
                if evict(self.entries(), room).kept_bytes > room:
                    return
            write_atomic(self._path(key), content + _SEAL(content).digest())

    def fault(self, entry: Entry) -> str | None:
        """Return the fault of the entry; None if it is intact."""
        try:
            descriptor = locks.share(entry.path)
            if descriptor is None or _intact(descriptor) is not None:  # None: removed since the listing
                return None
        except (OSError, ValueError) as failed:
            return f"cannot read {entry.path}: {failed}."
        return f"{entry.path} is damaged: its SHA-256 differs from the recorded one."

    def remove(self, entry: Entry) -> bool:
        """Remove the entry. Returns False if a process uses it or has used it since the listing."""
        with locks.unused(entry.path) as free, suppress(FileNotFoundError):
            if not free or entry.path.stat().st_mtime != entry.used:
                return False
            entry.path.unlink()
        return True

    def clear_leftovers(self) -> None:
        """Remove unfinished files of killed processes."""
        for folder, _, names in os.walk(self.root):
            for path in (Path(folder, name) for name in names if _UNFINISHED.fullmatch(name)):
                with suppress(FileNotFoundError):
                    if abs(time.time() - path.stat().st_mtime) > _ABANDONED_S:  # also for times in the future
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
FITS = FileArea(name="fits", content="sampler fitted to a model")
DIGESTS = FileArea(name="digests", content="digest of a file")
TIMINGS = FileArea(name="timings", content="layer timings of TensorRT")
REFITTABLE = FileArea(name="refittable", content="path of a refittable engine")
PRECISIONS = FileArea(name="precisions", content="check of a precision")
BUILT = FileArea(name="built", content="precision of a built network")
FILE_AREAS = (OPENVINO, SAMPLERS, FITS, DIGESTS, TIMINGS, REFITTABLE, PRECISIONS, BUILT)


@dataclass(frozen=True, kw_only=True)
class Evicted:
    """The result of `evict`."""

    removed: tuple[Entry, ...]
    busy: tuple[Entry, ...]  # also least recently used, but in use
    kept_bytes: int


def evict(entries: Iterable[Entry], max_bytes: int) -> Evicted:
    """Remove the least recently used entries until the rest has at most `max_bytes`. Keeps entries in use."""
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
    """Return a readable name for an entry."""
    return " ".join(" ".join(map(str, label.values())).split()) or f"entry {key[:12]}"


def _intact(descriptor: int) -> memoryview | None:
    """Return the mapped content of an open file if its SHA-256 matches. Only the mapping keeps the lock."""
    try:
        # Copy-on-write: OpenVINO requires a writable buffer, but does not write.
        data = memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY))
    finally:
        os.close(descriptor)
    content = data[:-_SEAL_BYTES]
    return content if content and _SEAL(content).digest() == data[-_SEAL_BYTES:] else None


def _raise(failed: OSError) -> None:
    raise failed
