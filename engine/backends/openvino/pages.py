"""Releases the pages of files that OpenVINO has mapped, once it has read them.

OpenVINO maps the weights of a graph and repacks them for its kernels. The mapped pages would stay in the process, as
large as the plan, though almost nothing reads them again. After a release, a read takes them from the system's file
cache. This halves the peak memory of a process.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_EVERY_S = 0.1
_MAPS = Path("/proc/self/maps")


@contextmanager
def releasing_mapped_pages(files: Sequence[Path]) -> Iterator[None]:
    """Release the pages of these files every 0.1 s while the block reads them, and once more at the end."""
    done = threading.Event()

    def run() -> None:
        while not done.wait(_EVERY_S):
            for file in files:
                release_mapped_pages(file)

    thread = threading.Thread(target=run, name="calotype-pages", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        for file in files:
            release_mapped_pages(file)


def release_mapped_pages(file: Path) -> int:
    """Release the resident pages of every read-only mapping of a file. Does nothing on systems other than Linux.

    Returns:
        The size of the mappings in bytes.
    """
    total = 0
    with suppress(OSError, AttributeError, ValueError):
        advise = ctypes.CDLL(None, use_errno=True).madvise
        for start, end in _mapped(file):
            if advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED) == 0:
                total += end - start
    return total


def _mapped(file: Path) -> Iterator[tuple[int, int]]:
    """Yield the address ranges where the file is mapped read-only: a private mapping would lose what was written."""
    name = str(file.resolve())
    for line in _MAPS.read_text().splitlines():
        addresses, rights, _, _, _, *path = line.split(maxsplit=5)
        if path == [name] and "w" not in rights:
            start, end = addresses.split("-")
            yield int(start, 16), int(end, 16)
