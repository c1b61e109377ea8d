"""SHA-256 of files, remembered for large ones by inode, time and size: gigabytes of weights are read once."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from calotype.errors import SourceError
from calotype.home import home, write_whole

_LARGE_BYTES = 64 << 20


def file_digest(path: Path) -> str:
    """The file's SHA-256 as hexadecimal digits. Raises `SourceError` where it cannot be read."""
    try:
        return _digest(path)
    except OSError as failed:
        raise SourceError(f"{path} cannot be read ({failed.strerror}).") from None


def _digest(path: Path) -> str:
    status = path.stat()
    if status.st_size < _LARGE_BYTES:
        return _read(path)
    key = f"{path.resolve()} {status.st_ino} {status.st_mtime_ns} {status.st_size}"
    remembered = home() / "digests" / hashlib.sha256(key.encode()).hexdigest()
    try:
        digest: str = json.loads(remembered.read_text())
        return digest
    except (OSError, ValueError):
        digest = _read(path)
    with suppress(OSError):  # a store that cannot be written costs a second reading next time
        write_whole(remembered, json.dumps(digest).encode())
    return digest


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
