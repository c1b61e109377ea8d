"""Will it fit? An estimate of what a picture needs, held against what there is, before the work starts.

A machine that runs out of memory kills the process without a word; a sentence beforehand is better. The estimate is the
largest single step, attention scores foremost: they grow with the fourth power of a picture's side.
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
_M_ARENA_MAX = -8  # of <malloc.h>
_LARGE_BYTES = 1 << 20  # of one input or output: 300 x 300 pixels of float32
_COPIES = 3  # of the largest array that are alive at once: an operation's input, its output, and a workspace


@dataclass(frozen=True, kw_only=True)
class Load:
    """One of the largest arrays of a run, for the estimate of memory: `width` numbers at every `pixels` x `pixels`.

    `squared` arrays hold a number for every pair of places (attention scores, `width` heads of them); `guided` ones
    are twice as large where there is guidance.
    """

    pixels: int
    width: int
    squared: bool
    guided: bool


def peak_bytes(loads: Sequence[Load], *, batch: int, height: int, width: int, guided: bool) -> int:
    """The most that any of `loads` needs for a batch of pictures of this size in pixels."""
    each = (_bytes(load, batch * (2 if guided and load.guided else 1), height, width) for load in loads)
    return max(each, default=0)


def _bytes(load: Load, batch: int, height: int, width: int) -> int:
    places = -(-height // load.pixels) * -(-width // load.pixels)
    row = places if load.squared else 1
    return batch * load.width * places * row * _FLOAT_BYTES * _COPIES


def check_memory(need_bytes: int, have_bytes: int | None) -> None:
    """`InputError` where the work needs more than there is."""
    if have_bytes is not None and need_bytes > have_bytes:
        raise InputError(
            f"this needs about {in_words(need_bytes)} of memory and {in_words(have_bytes)} are free; "
            "ask for smaller pictures, or fewer at once."
        )


def in_words(size: int) -> str:
    """A size as people read it: 512 MiB, 3.4 GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that this process may still take, by the machine and by its cgroup; None where neither tells."""
    found = [b for b in (_machine(root / "proc/meminfo"), _cgroup(root / "sys/fs/cgroup")) if b is not None]
    return min(found, default=None)


def _machine(meminfo: Path) -> int | None:
    try:  # at every picture: the line is one of the first
        with open(meminfo, "rb") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(b"MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def _cgroup(folder: Path) -> int | None:
    try:
        most, used = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, most - used + int(stat["inactive_file"]))  # cached files count as used, and give way
    except (OSError, ValueError, KeyError):  # "max" is no number: no limit
        return None


def trim_heap() -> None:
    """Return the free pages of the C heap to the system. Does nothing where the C library is not glibc."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def frees_after_run(component: str, arrays: Iterable[NDArray[Any]]) -> bool:
    """Should a network free its working memory after a run with these inputs and outputs?

    So it is for the autoencoder on large images. It runs once an image, with the largest arrays of all networks, and
    allocating them again costs a few percent of its time; kept, they would be most of the process's memory.
    """
    return component.startswith("vae_") and any(array.nbytes >= _LARGE_BYTES for array in arrays)


def one_heap() -> None:
    """Let all threads of this process allocate from one heap. Does nothing where the C library is not glibc.

    glibc gives threads heaps of their own. Where one thread frees what others allocated around it, the pages between
    stay resident: after a hundred compiled shapes that was 80 MB.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
