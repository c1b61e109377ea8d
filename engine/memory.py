"""Will it fit? An estimate of what a picture needs, held against what there is, before the work starts.

A machine that runs out of memory kills the process without a word; a sentence beforehand is better. The estimate is the
largest single step, attention scores foremost: they grow with the fourth power of a picture's side.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calotype.errors import InputError
from calotype.plan import Load

_FLOAT_BYTES = 4
_COPIES = 3  # of the largest array that are alive at once: an operation's input, its output, and a workspace


def peak_bytes(loads: Sequence[Load], *, batch: int, height: int, width: int, guided: bool) -> int:
    """The most that any of `loads` needs for a batch of pictures of this size in pixels."""
    return max(_bytes(load, batch * (2 if guided and load.guided else 1), height, width) for load in loads)


def _bytes(load: Load, batch: int, height: int, width: int) -> int:
    places = -(-height // load.pixels) * -(-width // load.pixels)
    row = places if load.squared else 1
    return batch * load.width * places * row * _FLOAT_BYTES * _COPIES


def check_memory(need_bytes: int, have_bytes: int | None) -> None:
    """`InputError` where the work needs more than there is."""
    if have_bytes is not None and need_bytes > have_bytes:
        raise InputError(
            f"this needs about {need_bytes / 2**30:.1f} GiB of memory and {have_bytes / 2**30:.1f} GiB are free; "
            "ask for smaller pictures, or fewer at once."
        )


def available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that this process may still take, by the machine and by its cgroup; None where neither tells."""
    found = [b for b in (_machine(root / "proc/meminfo"), _cgroup(root / "sys/fs/cgroup")) if b is not None]
    return min(found, default=None)


def _machine(meminfo: Path) -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        return None


def _cgroup(folder: Path) -> int | None:
    try:
        return max(0, int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text()))
    except (OSError, ValueError):  # "max" is no number: no limit
        return None
