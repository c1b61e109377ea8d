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
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from ..errors import SourceError
from .cache import DIGESTS

_LARGE_BYTES = 64 << 20
_TICK_S = 0.02  # no longer than this do two writes share a time: the kernel's clock for files moves 100 times a second

_rereading = ContextVar("rereading", default=False)


def file_digest(path: Path) -> str:
    """The file's SHA-256 as hexadecimal digits. Raises `SourceError` where it cannot be read."""
    try:
        return _digest(path)
    except OSError as failed:
        raise SourceError(f"{path} cannot be read ({failed.strerror}).") from None


def digest_of(data: Any) -> str:
    """SHA-256 of plain data, whatever the order of its names."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def rereading() -> Iterator[None]:
    """Read every file again inside of this block, whatever is remembered of it; what is read is remembered."""
    token = _rereading.set(True)
    try:
        yield
    finally:
        _rereading.reset(token)


def _digest(path: Path) -> str:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for without end
        raise OSError(0, "it is no file")
    if status.st_size < _LARGE_BYTES:
        return _read(path)
    if not _rereading.get() and (remembered := DIGESTS.read(_name(status))) is not None:
        return bytes(remembered).decode()
    settled = status.st_ctime + _TICK_S  # from then on another write is sure to have another time
    time.sleep(min(max(settled - time.time(), 0), _TICK_S))
    told_apart = time.time() >= settled  # no, if the file comes from the future
    digest = _read(path)
    if told_apart:
        DIGESTS.write(_name(status), digest.encode())
    return digest


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _name(status: os.stat_result) -> str:
    same = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return hashlib.sha256(repr(same).encode()).hexdigest()
