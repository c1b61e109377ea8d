"""The GPU for the backends: streams, copies, and the working memory that engines share.

Everything that needs a device is in this module, so that tests can replace it. Imports torch when it is used.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import DeviceFullError, first_line
from ..system.memory import in_words

if TYPE_CHECKING:
    from torch import Tensor, nn


T = TypeVar("T")
Array = NDArray[Any]

TOO_LARGE = ("a run of this size", "request smaller images, or fewer at once")  # what has no room, and what to do

# What the errors of torch, NVIDIA's libraries and C++ contain if memory is full.
_FULL = ("bad_alloc", "out of memory", "alloc_failed", "cuda_error_out_of_memory", "outofmemory", "failed to allocate")


def is_full(message: str) -> bool:
    """Return whether a library's error message says that the device is full."""
    return any(words in message.lower() for words in _FULL)


def raising_memory_error(run: Callable[[], T]) -> T:
    """Return the result of `run`. Raise `MemoryError`, as on a host, if the device is full."""
    try:
        return run()
    except RuntimeError as failed:  # torch's error is a subclass; other libraries raise it directly
        message = next((m for m in _messages(failed) if is_full(m)), None)
        if message is None:
            raise
    empty_cache()  # outside of `except`, so that no traceback keeps tensors alive
    raise MemoryError(message.partition(" ")[2])


def run_or_device_full(run: Callable[[], T], what: str, fix: str) -> T:
    """Return the result of `run`. Raise `DeviceFullError`, with the advice `fix`, if there is no room for `what`."""
    try:
        return raising_memory_error(run)
    except MemoryError as full:
        message = first_line(full)
    raise DeviceFullError(device_full_message(what, message, fix), hint=fix, free_bytes=free_bytes())


def _messages(failed: BaseException | None) -> Iterator[str]:
    """Yield type and message of an error and of its causes: a failed capture hides the real error."""
    while failed is not None:
        yield f"{type(failed).__name__} {first_line(failed)}"
        failed = failed.__cause__ or failed.__context__


def device_full_message(what: str, message: str, fix: str) -> str:
    """Return the error message: what has no room, the library's message, the free memory, and what to do."""
    free = free_bytes()
    available = "" if free is None else f"; {in_words(free)} are free"
    return f"the GPU has no room for {what} ({message}{available}); {fix}."


def free_bytes() -> int | None:
    """Return the device memory that this process can still use; None without a device, or if torch has not used it."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    free, total = torch.cuda.mem_get_info()
    reserved, allocated = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
    share = torch.cuda.get_per_process_memory_fraction()
    return int(min(free, max(0, share * total - reserved)) + reserved - allocated)


def empty_cache() -> None:
    """Release the device memory that torch caches."""
    import torch

    torch.cuda.empty_cache()  # does nothing if no device was used


class Arena:
    """Working memory for engines that run one after another on one stream. It grows to the largest need.

    Captured runs cannot use it: a graph would keep the address of a buffer that is freed when a larger one is needed.
    """

    def __init__(self, allocate: Callable[[int], Tensor]) -> None:
        self._allocate = allocate
        self._lock = threading.Lock()
        self._memory: Tensor | None = None

    def at_least(self, size_bytes: int) -> Tensor:
        """Return a buffer of at least this size. The old one may still be in use: torch frees it in stream order."""
        with self._lock:
            if self._memory is None or self._memory.numel() < size_bytes:
                self._memory = None  # first free it: the two need not exist together
                self._memory = self._allocate(max(1, size_bytes))
            return self._memory


class Gpu:
    """The current CUDA device of torch."""

    _lock = threading.Lock()
    _side: Any = None  # one stream for all runners that take arrays, so that they share an arena
    _arenas: dict[int, Arena] = {}  # noqa: RUF012  shared by the process, as streams are

    def current_stream(self) -> int:
        """Return the handle of torch's current stream."""
        import torch

        return int(torch.cuda.current_stream().cuda_stream)

    def capturing(self) -> bool:
        """Return whether a graph is being captured."""
        import torch

        return bool(torch.cuda.is_current_stream_capturing())

    @contextmanager
    def side_stream(self) -> Iterator[None]:
        """Use a separate stream inside the block: on the default stream TensorRT would wait for the whole device."""
        import torch

        with Gpu._lock:
            Gpu._side = Gpu._side or torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(Gpu._side):
            yield

    def arena(self, stream: int) -> Arena:
        """Return the working memory of a stream. Runs on two streams may overlap, so they must not share it."""
        with Gpu._lock:
            return Gpu._arenas.setdefault(stream, Arena(lambda size: self.empty((size,), "uint8")))

    def empty(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        """Allocate memory on the device. torch aligns it to 512 bytes; TensorRT needs 256."""
        import torch

        return torch.empty(shape, dtype=getattr(torch, dtype), device="cuda")

    @contextmanager
    def nvtx_range(self, name: str) -> Iterator[None]:
        """Mark the block as a range of this name for NVIDIA's profilers. Costs almost nothing without one."""
        import torch

        with torch.cuda.nvtx.range(name):
            yield

    def run_arrays(
        self, name: str, function: Callable[[dict[str, Tensor]], Mapping[str, Tensor]], arrays: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Run a function of tensors on the side stream over arrays of the host. `name` is what profilers show.

        Raises:
            DeviceFullError: the run does not fit on the device.
        """

        def run() -> dict[str, Array]:
            outputs = function({each: self.to_device(array) for each, array in arrays.items()})
            return {each: self.to_host(tensor) for each, tensor in outputs.items()}

        with self.side_stream(), self.nvtx_range(name):
            return run_or_device_full(run, *TOO_LARGE)

    def move_module(self, module: nn.Module) -> nn.Module:
        """Move a module's parameters to the device."""
        return module.to("cuda")

    def total_bytes(self) -> int:
        """Return the size of the device's memory."""
        import torch

        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)

    def to_device(self, array: Array) -> Tensor:
        """Copy an array to the device, in the order of the current stream."""
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).to("cuda")

    def to_host(self, tensor: Tensor) -> Array:
        """Copy a tensor to the host through pinned memory, after the current stream has computed it."""
        import torch

        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        array: Array = host.numpy()
        return array
