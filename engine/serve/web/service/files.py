"""The images that clients fetch by address: kept in one folder, under names that cannot be guessed, until they expire.

A file is written under a temporary name and renamed, so that a crash leaves no incomplete one under its own name.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from ...service_settings import ServiceSettings
from .images import Format

MEDIA: dict[str, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
_NAME = re.compile(r"[A-Za-z0-9_-]{32}\.(png|jpeg|webp)", re.ASCII)
_TEMPORARY = "calotype-serve-"
_UNFINISHED = ".part"
_LOCK = "lock"
_EXPIRE_EVERY_S = 20.0


class KeptFile(NamedTuple):
    """A file of a client."""

    path: Path
    media: str


class KeptFiles:
    """The folder of the service's images. Threads may share it."""

    def __init__(self, settings: ServiceSettings) -> None:
        """Open the folder, and remove what an earlier server left unfinished in it."""
        self._expire_s, self._max_bytes = settings.files_expire_s, settings.max_files_bytes
        self._guard = threading.Lock()
        self._lock: int | None = None
        if settings.files_folder is None:
            self._folder, self._lock = _temporary_folder()
        else:
            self._folder = settings.files_folder.expanduser()
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._folder.rglob(f"*{_UNFINISHED}"):
            path.unlink(missing_ok=True)
        self.expire()

    def keep(self, data: bytes, kind: Format, owner: str) -> str:
        """Write a file and return its name."""
        name = f"{secrets.token_urlsafe(24)}.{kind}"
        folder = self._of(owner)
        folder.mkdir(mode=0o700, exist_ok=True)
        unfinished = folder / (name + _UNFINISHED)
        unfinished.write_bytes(data)
        os.replace(unfinished, folder / name)
        self._bytes += len(data)
        if self._bytes > self._max_bytes or time.monotonic() > self._expired_at + _EXPIRE_EVERY_S:
            self.expire()
        return name

    def find(self, name: str, owner: str | None) -> KeptFile | None:
        """Return a file by its name, or None if there is none, or it has expired, or it is another owner's.

        An owner of None stands for a client who shows no key: it knows the name, which cannot be guessed.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        folders = [self._of(owner)] if owner is not None else [f for f in self._folder.iterdir() if f.is_dir()]
        for path in (folder / name for folder in folders):
            try:
                if path.stat().st_mtime + self._expire_s > time.time():
                    return KeptFile(path, MEDIA[match[1]])
            except OSError:
                continue
        return None

    def expire(self) -> None:
        """Remove files that have expired, and the oldest ones beyond the limit of all bytes."""
        with self._guard:
            self._expired_at = time.monotonic()
            files = [(path, path.stat()) for path in self._folder.glob("*/*") if _NAME.fullmatch(path.name)]
            files.sort(key=lambda file: file[1].st_mtime)
            total, now = sum(status.st_size for _, status in files), time.time()
            for path, status in files:
                if status.st_mtime + self._expire_s > now and total <= self._max_bytes:
                    break
                path.unlink(missing_ok=True)
                total -= status.st_size
            self._bytes = total

    def close(self) -> None:
        """Remove a temporary folder; a configured one stays."""
        if self._lock is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            os.close(self._lock)
            self._lock = None

    def _of(self, owner: str) -> Path:
        return self._folder / hashlib.sha256(owner.encode()).hexdigest()[:16]


def _temporary_folder() -> tuple[Path, int]:
    """Return a new private folder, locked while this process lives. Removes those of servers that were killed."""
    for left in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*"):
        status = left.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not _is_locked(left / _LOCK):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY))  # of mode 0700
    lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return folder, lock


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return True  # a server that starts now, or a folder of something else
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
