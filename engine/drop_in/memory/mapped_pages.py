"""Which weights in a mapped file were written since they were mapped: Linux knows it by page, so that nothing is read.

A page of a private mapping belongs to the file until the first write, which gives the process a copy.
"""

from __future__ import annotations

import mmap
import sys
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# https://docs.kernel.org/admin-guide/mm/pagemap.html
_PAGEMAP = Path("/proc/self/pagemap")
_PRESENT, _SWAPPED, _OF_FILE = 1 << 63, 1 << 62, 1 << 61

_lock = threading.Lock()
_mapped: dict[int, Mapping[tuple[int, int], int]] = {}  # the address of a mapping -> its checksums


def mapped(path: Path, checksums: Mapping[tuple[int, int], int]) -> Tensor:
    """Map a file into private memory.

    Args:
        path: the file.
        checksums: those of its tensors, by their offset and size in bytes.

    Returns:
        Its bytes.  # uint8
    """
    with path.open("rb") as file:
        pages = torch.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), dtype=torch.uint8)
    start = pages.data_ptr()
    with _lock:
        _mapped[start] = checksums
    weakref.finalize(pages.untyped_storage(), _mapped.pop, start, None)
    return pages


def unchanged_checksum(tensor: Tensor) -> int | None:
    """Return the checksum of a tensor in a mapping without reading it; None if it is elsewhere, or was written."""
    if not _mapped or not tensor.is_contiguous():
        return None
    start, begin = tensor.untyped_storage().data_ptr(), tensor.data_ptr()
    known = _mapped.get(start, {}).get((begin - start, tensor.nbytes))
    return known if known is not None and not _written(begin, tensor.nbytes) else None


def _written(begin: int, size: int) -> bool:
    """Return whether the process has its own copy of a page; True where the system does not tell."""
    if sys.platform != "linux":
        return True
    first, last = begin // mmap.PAGESIZE, (begin + size - 1) // mmap.PAGESIZE
    try:
        with _PAGEMAP.open("rb", buffering=0) as file:
            file.seek(8 * first)
            flags = np.frombuffer(file.read(8 * (last + 1 - first)), np.uint64)
    except OSError:
        return True
    if len(flags) != last + 1 - first:
        return True
    own = (flags & _SWAPPED != 0) | ((flags & _PRESENT != 0) & (flags & _OF_FILE == 0))
    return bool(own.any())
