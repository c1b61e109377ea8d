"""Pages of files that OpenVINO has mapped, given back once it has read them.

OpenVINO maps the weights of a graph, and packs them anew for its kernels. The mapped pages would stay with the process,
as large as the plan, though hardly anything reads them again: given back, they come from the system's cache of the file
if anything does. At its peak a process has half the memory so.
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
    """Inside, something reads the files once: again and again their pages are given back, and once more at the end."""
    done = threading.Event()

    def run() -> None:
        while not done.wait(_EVERY_S):
            for file in files:
                release_mapped_pages(file)

    beside = threading.Thread(target=run, name="calotype-pages", daemon=True)
    beside.start()
    try:
        yield
    finally:
        done.set()
        beside.join()
        for file in files:
            release_mapped_pages(file)


def release_mapped_pages(file: Path) -> int:
    """Let go of the resident pages of every read-only mapping of this file; how many bytes were mapped.

    Where the system has no such means (it is Linux's), nothing is done.
    """
    total = 0
    with suppress(OSError, AttributeError, ValueError):
        advise = ctypes.CDLL(None, use_errno=True).madvise
        for start, end in _mapped(file):
            if advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED) == 0:
                total += end - start
    return total


def _mapped(file: Path) -> Iterator[tuple[int, int]]:
    """Where the file is mapped, read-only: what was written to a private mapping would be lost."""
    name = str(file.resolve())
    for line in _MAPS.read_text().splitlines():
        place, rights, _, _, _, *path = line.split(maxsplit=5)
        if path == [name] and "w" not in rights:
            start, end = place.split("-")
            yield int(start, 16), int(end, 16)
