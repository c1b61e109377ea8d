"""Memory: estimate the need of a call before it starts, compare it with the free memory, and release memory.

The system kills a process that exhausts the memory without a message, so an error before the start is better. The
estimate is the largest single step, usually attention scores: they grow with the fourth power of an image's side.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FLOAT_BYTES = 4
_M_ARENA_MAX = -8  # from <malloc.h>
_LARGE_BYTES = 1 << 20  # a large input or output: 300 x 300 pixels of float32
_COPIES = 3  # the largest array exists three times: an operation's input, its output, and a workspace


@dataclass(frozen=True, kw_only=True)
class Load:
    """One of the largest arrays of a run, for the estimate of memory: `width` numbers for each `pixels` x `pixels`.

    A `squared` array has a number for every pair of positions (attention scores, with `width` heads). Guidance doubles
    a `guided` array.
    """

    pixels: int
    width: int
    squared: bool
    guided: bool


def peak_bytes(loads: Sequence[Load], *, batch: int, height: int, width: int, guided: bool) -> int:
    """Return the largest need of any of `loads`, for a batch of images of this size in pixels."""
    each = (_bytes(load, batch * (2 if guided and load.guided else 1), height, width) for load in loads)
    return max(each, default=0)


def _bytes(load: Load, batch: int, height: int, width: int) -> int:
    positions = -(-height // load.pixels) * -(-width // load.pixels)
    row = positions if load.squared else 1
    return batch * load.width * positions * row * _FLOAT_BYTES * _COPIES


def check_memory(need_bytes: int, have_bytes: int | None) -> None:
    """Raise `InputError` if a call needs more memory than is free."""
    if have_bytes is not None and need_bytes > have_bytes:
        expected = f"at most {in_words(have_bytes)} of memory"
        raise InputError(
            f"Not enough memory: this call needs about {in_words(need_bytes)}, and {in_words(have_bytes)} is free. "
            "Use a smaller size, or fewer images at once.",
            got=need_bytes,
            expected=expected,
        )


def in_words(size: int) -> str:
    """Format a number of bytes: 512 MiB, 3.4 GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def available_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory that this process may still use, by machine and cgroup limits; None if neither is known."""
    either = (proc_bytes(root / "proc/meminfo", "MemAvailable"), _cgroup(root / "sys/fs/cgroup"))
    return min((limit for limit in either if limit is not None), default=None)


def proc_bytes(file: Path, field: str) -> int | None:
    """Return a field of /proc/meminfo or /proc/PID/status in bytes, such as "MemTotal: 8 kB"; None if it is unknown."""
    try:  # runs for every image: stop at the line, which is one of the first
        with open(file, "rb") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:".encode()))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def _cgroup(folder: Path) -> int | None:
    try:
        limit, used = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(stat["inactive_file"]))  # cached files count as used, and can be evicted
    except (OSError, ValueError, KeyError):  # "max" means no limit
        return None


def trim_heap() -> None:
    """Return the free pages of the C heap to the system. Does nothing without glibc."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def frees_after_run(component: str, arrays: Iterable[NDArray[Any]]) -> bool:
    """Return whether a network frees its working memory after a run with these inputs and outputs.

    True for the VAE on large images. It runs once for each image, with the largest arrays of all networks. Allocating
    them again costs a few percent of its time; otherwise they would be most of the process's memory.
    """
    return component.startswith(("vae_", "upscaler")) and any(array.nbytes >= _LARGE_BYTES for array in arrays)


def one_heap() -> None:
    """Let all threads of this process allocate from one heap. Does nothing without glibc.

    glibc gives each thread its own heap. If one thread frees memory between allocations of others, the free pages stay
    resident: 80 MB after a hundred compiled shapes.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
