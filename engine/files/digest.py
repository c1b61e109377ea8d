"""SHA-256 of files. The digests of large files are cached, so that gigabytes are read once.

The cache key of a digest is the file's device, inode, size, modification time and change time. A write that resets the
modification time still changes the change time. A renamed file keeps its digest. Damage on the disk without a write is
detected only when the file is read again.
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
_TICK_S = 0.02  # writes further apart have different times: the kernel's clock for files ticks 100 times per second

_rereading = ContextVar("rereading", default=False)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits. Raises `SourceError` if it cannot be read."""
    try:
        return _digest(path)
    except OSError as failed:
        raise SourceError(f"cannot read {path}: {failed.strerror}.", path=path) from None


def digest_of(data: Any) -> str:
    """Return the SHA-256 of plain data. The order of names does not matter."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def rereading() -> Iterator[None]:
    """Ignore cached digests inside of this block, and cache the new ones."""
    token = _rereading.set(True)
    try:
        yield
    finally:
        _rereading.reset(token)


def _digest(path: Path) -> str:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would block
        raise OSError(0, "it is not a regular file")
    if status.st_size < _LARGE_BYTES:
        return _read(path)
    if not _rereading.get() and (cached := DIGESTS.read(_key(status))) is not None:
        return bytes(cached).decode()
    settled = status.st_ctime + _TICK_S  # a later write has another time
    time.sleep(min(max(settled - time.time(), 0), _TICK_S))
    distinguishable = time.time() >= settled  # false for a time in the future
    digest = _read(path)
    if distinguishable:
        DIGESTS.write(_key(status), digest.encode())
    return digest


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _key(status: os.stat_result) -> str:
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return hashlib.sha256(repr(identity).encode()).hexdigest()
