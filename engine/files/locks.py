"""Who may touch what in the cache. Locks between processes, which the system releases however a process ends.

`KEY.lock` is held by the one process that makes or removes an entry, and is there only as long. An entry that a process
was handed is *in use* until that process ends: it holds the entry's own `entry.json`, shared with others, so that
reading needs no second file and works in a store that cannot be written.
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

_PATIENCE_S = 1.0  # a shorter wait is not worth a word
_NO_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)

_in_use: dict[Path, int] = {}  # a descriptor for each entry that this process was handed
_guard = threading.Lock()


@contextmanager
def exclusive(path: Path, *, wait_for: str | None = None) -> Iterator[bool]:
    """Hold the lock file `path`, which is made now and gone afterwards.

    With `wait_for` (what its holder is making) wait, and say on stderr what for; without, yield False where another
    process or thread holds it. Raises `SourceError` on a file system that knows no locks.
    """
    started, told = time.monotonic(), wait_for is None
    while (descriptor := _take(path)) is None and wait_for is not None:
        if not told and time.monotonic() - started > _PATIENCE_S:
            line = f"calotype: waiting for {_holder(path)}, which is busy with {wait_for}"
            print(printable(line), file=sys.stderr, flush=True)
            told = True
        time.sleep(0.05)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            with suppress(OSError):  # the file is removed while it is held: whoever opened it meanwhile looks again
                if _is(descriptor, path):
                    path.unlink()
            os.close(descriptor)


def use(path: Path) -> bool:
    """Share the lock of this file until this process ends; False where there is none, or it is being removed."""
    if (descriptor := share(path)) is None:
        return False
    with _guard:
        before = _in_use.pop(path, None)
        _in_use[path] = descriptor
        if before is not None:
            os.close(before)
    return True


def share(path: Path) -> int | None:
    """Open a file with its lock shared, until the descriptor and its copies are closed; None as `use` says False.

    Where the file system knows no locks nothing can be removed either (`exclusive` refuses), so reading needs none.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe in its place is not waited for
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
    """Is the entry of this `entry.json` used by no process, this one included? If so, none may begin to meanwhile."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except _NO_FILE:  # nobody is handed an entry without this file
        yield True
        return
    try:
        yield _lock(descriptor, path)
    finally:
        os.close(descriptor)


def _take(path: Path) -> int | None:
    """The lock file's descriptor, locked; None where another holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        mine = _lock(descriptor, path) and _is(descriptor, path)
        if mine:
            with suppress(OSError):  # for those who wait; a full disk has no room for it
                os.truncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()} {os.uname().nodename}".encode())
    except BaseException:
        os.close(descriptor)
        raise
    if not mine:
        os.close(descriptor)
    return descriptor if mine else None


def _lock(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as failed:  # ENOLCK, EOPNOTSUPP, ENOSYS: some network and FUSE file systems
        raise SourceError(
            f"{path} cannot be locked ({failed.strerror}), so two processes could not be kept from one entry; "
            "name a folder on a local disk with `export CALOTYPE_HOME=FOLDER`."
        ) from None


def _is(descriptor: int, path: Path) -> bool:
    """Does the path still lead to the open file, and is it a file?"""
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
