"""The GPU as backends see it: streams, copies, and the working memory that engines share.

Everything that needs a device is here, so that the rest can be tested without one. Imports torch when it is used.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn


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
