"""The GPU as backends see it: streams, copies, and the working memory that engines share.

Everything that needs a device is here, so that the rest can be tested without one. Imports torch when it is used.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..errors import DeviceFullError, first_line
from ..system.memory import in_words

if TYPE_CHECKING:
    from torch import Tensor, nn


T = TypeVar("T")

# What torch, NVIDIA's libraries and C++ say where there is no memory.
_FULL = ("bad_alloc", "out of memory", "alloc_failed", "cuda_error_out_of_memory", "outofmemory", "failed to allocate")


def is_full(told: str) -> bool:
    """Do a library's words say that the device has no room?"""
    return any(words in told.lower() for words in _FULL)


def raising_memory_error(run: Callable[[], T]) -> T:
    """What `run` gives. Where the device has no room, `MemoryError`, as a host raises it."""
    try:
        return run()
    except RuntimeError as failed:  # torch's own kind derives from it; libraries below it raise it as it is
        told = next((t for t in _told_by(failed) if is_full(t)), None)
        if told is None:
            raise
    empty_cache()  # out here no traceback holds on to tensors
    raise MemoryError(told.partition(" ")[2])


def run_or_device_full(run: Callable[[], T], what: str, mend: str) -> T:
    """What `run` gives. Where the device has no room, `DeviceFullError`: none for `what`, and `mend` is what to do."""
    try:
        return raising_memory_error(run)
    except MemoryError as full:
        told = first_line(full)
    raise DeviceFullError(no_room(what, told, mend))


def _told_by(failed: BaseException | None) -> Iterator[str]:
    """Kind and message of an error, and of those that it came of: a capture that fails says no more than that."""
    while failed is not None:
        yield f"{type(failed).__name__} {first_line(failed)}"
        failed = failed.__cause__ or failed.__context__


def no_room(what: str, told: str, mend: str) -> str:
    """The sentence: what has no room, what the library says, how much is free, and what to do."""
    free = free_bytes()
    left = "" if free is None else f"; {in_words(free)} are free"
    return f"the GPU has no room for {what} ({told}{left}); {mend}."


def free_bytes() -> int | None:
    """What this process may still take of the device; None without one. Does not wake a device that nobody uses."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    free, total = torch.cuda.mem_get_info()
    reserved, allocated = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
    share = torch.cuda.get_per_process_memory_fraction()
    return int(min(free, max(0, share * total - reserved)) + reserved - allocated)


def empty_cache() -> None:
    """What torch keeps of the device for later use goes back."""
    import torch

    torch.cuda.empty_cache()  # nothing where no device was used


class Arena:
    """Working memory for engines that run one after another on one stream; it grows to the most that any needs.

    Not for captured runs: a graph would hold the address of a buffer that is let go of when a larger one is wanted.
    """

    def __init__(self, allocate: Callable[[int], Tensor]) -> None:
        self._allocate = allocate
        self._lock = threading.Lock()
        self._memory: Tensor | None = None

    def at_least(self, size_bytes: int) -> Tensor:
        """A buffer of at least this size. One before may be in use still: torch frees it in the stream's order."""
        with self._lock:
            if self._memory is None or self._memory.numel() < size_bytes:
                self._memory = None  # first let go of it: the two need not be there together
                self._memory = self._allocate(max(1, size_bytes))
            return self._memory


class Gpu:
    """The current CUDA device of torch."""

    _lock = threading.Lock()
    _side: Any = None  # one stream for all runners called with arrays, so that they share an arena
    _arenas: dict[int, Arena] = {}  # noqa: RUF012  of the process: streams are the device's

    def current_stream(self) -> int:
        """The handle of torch's current stream."""
        import torch

        return int(torch.cuda.current_stream().cuda_stream)

    def capturing(self) -> bool:
        """Is what is launched now recorded into a graph?"""
        import torch

        return bool(torch.cuda.is_current_stream_capturing())

    @contextmanager
    def side_stream(self) -> Iterator[None]:
        """Inside, a stream of our own is current: on the default one TensorRT would wait for the whole device."""
        import torch

        with Gpu._lock:
            Gpu._side = Gpu._side or torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(Gpu._side):
            yield

    def arena(self, stream: int) -> Arena:
        """The working memory of a stream: runs on two streams may overlap, and may not share it."""
        with Gpu._lock:
            return Gpu._arenas.setdefault(stream, Arena(lambda size: self.empty((size,), "uint8")))

    def empty(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        """Memory on the device; torch aligns it to 512 bytes, TensorRT wants 256."""
        import torch

        return torch.empty(shape, dtype=getattr(torch, dtype), device="cuda")

    @contextmanager
    def named(self, name: str) -> Iterator[None]:
        """Inside, a range of this name: what a profiler of NVIDIA's shows. Costs next to nothing where none looks."""
        import torch

        with torch.cuda.nvtx.range(name):
            yield

    def hold(self, module: nn.Module) -> nn.Module:
        """The module with its parameters on the device."""
        return module.to("cuda")

    def total_bytes(self) -> int:
        """The device's memory."""
        import torch

        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)

    def put(self, array: np.ndarray[Any, Any]) -> Tensor:
        """The array on the device, in the order of the current stream."""
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).to("cuda")

    def fetch(self, tensor: Tensor) -> np.ndarray[Any, Any]:
        """The tensor as an array, once the current stream has made it: through pinned memory."""
        import torch

        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        found: np.ndarray[Any, Any] = host.numpy()
        return found
