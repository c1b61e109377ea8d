"""Locks between processes for the cache. The system releases them when a process ends in any way.

The process that builds or removes an entry holds `KEY.lock`, which exists only for that time. An entry that a process
has received is *in use* until the process ends: it holds a shared lock on the entry's `entry.json`. So reading needs no
second file and works in a read-only store.

`filelock` cannot do this: its shared lock is a database of its own, and it knows no holder for the message of those who
wait. So these are calls of flock(2).
"""

from __future__ import annotations

import fcntl
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import SourceError
from ..errors.printable import printable

_QUIET_S = 1.0  # print no message for a shorter wait
_NO_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)

_in_use: dict[Path, int] = {}  # a descriptor for each entry that this process uses
_guard = threading.Lock()


@contextmanager
def exclusive(path: Path, *, wait_for: str | None = None) -> Iterator[bool]:
    """Hold the lock file `path`, which exists only during the block. Yields True while it is held.

    If another process or thread holds it, wait and print the reason to stderr, or without `wait_for` yield False.

    Args:
        path: the lock file.
        wait_for: what the holder is working on, for the message.

    Raises:
        SourceError: the file system does not support locks.
    """
    started, printed = time.monotonic(), False
    while (descriptor := _take(path)) is None and wait_for is not None:
        if not printed and time.monotonic() - started > _QUIET_S:
            line = f"calotype: waiting for {_holder(path)}, which is busy with {wait_for}"
            print(printable(line), file=sys.stderr, flush=True)
            printed = True
        time.sleep(0.05)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            with suppress(OSError):  # remove it while it is held: others that opened it check it again
                if _is(descriptor, path):
                    path.unlink()
            os.close(descriptor)


def use(path: Path) -> bool:
    """Share the lock of a file until this process ends. Returns False if it does not exist or is being removed."""
    if (descriptor := share(path)) is None:
        return False
    with _guard:
        before = _in_use.pop(path, None)
        _in_use[path] = descriptor
        if before is not None:
            os.close(before)
    return True


def release(path: Path) -> None:
    """End the use of a file by this process, all threads included."""
    with _guard:
        descriptor = _in_use.pop(path, None)
        if descriptor is not None:
            os.close(descriptor)


def share(path: Path) -> int | None:
    """Open a file with a shared lock, until the descriptor and its copies are closed.

    Returns None if the file does not exist or is being removed. On a file system without locks no file can be removed
    either (`exclusive` raises), so reading needs no lock.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # does not wait for a pipe
    except _NO_FILE:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        pass
    if not _is(descriptor, path):
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def unused(path: Path) -> Iterator[bool]:
    """Yield whether no process, also not this one, uses the entry of this `entry.json`. If so, block new uses."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except _NO_FILE:  # no process receives an entry without this file
        yield True
        return
    try:
        yield _lock(descriptor, path)
    finally:
        os.close(descriptor)


def _take(path: Path) -> int | None:
    """Lock the lock file and return its descriptor; None if another process holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        locked = _lock(descriptor, path) and _is(descriptor, path)
        if locked:
            with suppress(OSError):  # for the message of those who wait; fails on a full disk
                os.truncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()} {os.uname().nodename}".encode())
    except BaseException:
        os.close(descriptor)
        raise
    if not locked:
        os.close(descriptor)
    return descriptor if locked else None


def _lock(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as failed:  # ENOLCK, EOPNOTSUPP, ENOSYS: some network and FUSE file systems
        raise SourceError(
            f"cannot lock {path} ({failed.strerror}): the file system does not support locks. Choose a folder on a "
            "local disk with `export CALOTYPE_HOME=FOLDER`.",
            path=path,
        ) from None


def _is(descriptor: int, path: Path) -> bool:
    """Tell whether the path still leads to the open file, and is a regular file."""
    with suppress(OSError):
        return path.is_file() and os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def _holder(path: Path) -> str:
    try:
        pid, host = path.read_text().split(maxsplit=1)
        if host != os.uname().nodename:
            return f"process {pid} on {host}"
        state = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[0]
        return f"process {pid}, stopped until `kill -CONT {pid}`" if state == "T" else f"process {pid}"
    except (OSError, ValueError, IndexError):
        return "another process"
