"""SHA-256 of files. Large ones are remembered, so that gigabytes are read once.

What is remembered holds for a file's very bytes: its device, inode, size and both times. A write that puts the
modification time back still moves the change time, and a file that is renamed keeps its digest. What rots on the disk
without a write is noticed only when the file is read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from calotype.errors import SourceError
from calotype.home import home, write_whole

_LARGE_BYTES = 64 << 20
_TICK_S = 0.02  # no longer than this do two writes share a time: the kernel's clock for files moves 100 times a second


def file_digest(path: Path) -> str:
    """The file's SHA-256 as hexadecimal digits. Raises `SourceError` where it cannot be read."""
    try:
        return _digest(path)
    except OSError as failed:
        raise SourceError(f"{path} cannot be read ({failed.strerror}).") from None


def digest_of(data: Any) -> str:
    """SHA-256 of plain data, whatever the order of its names."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()


def forget_others(alive: Iterable[Path]) -> None:
    """Forget the digests of files that are gone or changed, but those of `alive`, which may have been renamed since."""
    names = set()
    for path in alive:
        with suppress(OSError):
            names.add(_name(path.stat()))
    for remembered in (home() / "digests").glob("[!.]*"):
        with suppress(OSError):
            if remembered.name not in names and not _holds(remembered):
                remembered.unlink()


def _digest(path: Path) -> str:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for without end
        raise OSError(0, "it is no file")
    if status.st_size < _LARGE_BYTES:
        return _read(path)
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(_remembered(_name(status)).read_text())["digest"])
    settled = status.st_ctime + _TICK_S  # from then on another write is sure to have another time
    time.sleep(min(max(settled - time.time(), 0), _TICK_S))
    told_apart = time.time() >= settled  # no, if the file comes from the future
    digest = _read(path)
    if told_apart:
        said = json.dumps({"digest": digest, "path": str(path.resolve())})
        with suppress(OSError):  # a store that cannot be written costs a second reading next time
            write_whole(_remembered(_name(status)), said.encode())
    return digest


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _name(status: os.stat_result) -> str:
    same = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return hashlib.sha256(repr(same).encode()).hexdigest()


def _remembered(name: str) -> Path:
    return home() / "digests" / name


def _holds(remembered: Path) -> bool:
    """Is the file that this digest was taken of still there, and as it was?"""
    try:
        return _name(Path(json.loads(remembered.read_text())["path"]).stat()) == remembered.name
    except (OSError, ValueError, KeyError, TypeError):
        return False
