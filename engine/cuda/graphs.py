"""Cache of CUDA graphs of one function of tensors: a graph for each set of shapes, within a limit in bytes.

A graph replays launches on fixed addresses. So inputs are copied into the graph's buffers, outputs are copied out
before the next replay, and a lock lets one caller in at a time. New shapes replace the least recently used ones. A full
device first drops the graphs of the cache that needs room, then those of all others. Each graph has its own memory
pool, because a pool is only freed as a whole: a dropped graph frees its memory, but graphs of different sizes cannot
share memory.

A `GraphCapturer` captures and replays: `CudaGraphCapturer` on a GPU, another one in tests. This module knows nothing of
networks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeAlias
from weakref import WeakSet

from ..errors import DeviceFullError, first_line
from ..system.lru_cache import LruCache
from .capture import captured, capturing_alone, warm_up
from .device import TOO_LARGE, device_full_message, empty_cache, free_bytes, raising_memory_error

if TYPE_CHECKING:
    from torch import Tensor

Tensors: TypeAlias = "Mapping[str, Tensor]"
Function: TypeAlias = "Callable[..., dict[str, Tensor]]"  # of tensors by name, and options


@dataclass(frozen=True, kw_only=True)
class CapturedGraph:
    """A captured graph. `replay` writes `outputs`, which hold its values until the next replay."""

    inputs: Tensors
    outputs: Tensors
    replay: Callable[[], None]
    size_bytes: int  # device memory that the capture added


class GraphCapturer(Protocol):
    """Captures graphs on a device."""

    def record(self, function: Function, inputs: Tensors) -> CapturedGraph:
        """Capture the function on these inputs, which the graph then owns. Raise `MemoryError` if memory is full."""


_CACHES: WeakSet[CudaGraphCache] = WeakSet()  # of the process: they fill the same device


class CudaGraphCache:
    """A function that replays its graphs. Threads may share it; all must use the same stream."""

    def __init__(self, function: Function, recorder: GraphCapturer, *, limit_bytes: int) -> None:
        self._function, self._recorder = function, recorder
        self._lock = threading.Lock()
        self._graphs: LruCache[CapturedGraph] = LruCache(limit_bytes, lambda graph: graph.size_bytes)
        _CACHES.add(self)

    def __call__(self, inputs: Tensors, **options: Hashable) -> dict[str, Tensor]:
        """Return copies of the function's outputs. The options are arguments of the function: each has its own graphs.

        Raises:
            DeviceFullError: the run does not fit on the device, even without other graphs. A later call with smaller
                inputs works.
        """
        with self._lock:
            for make_room in (self._graphs.clear, self._clear_all, self._graphs.clear):
                try:
                    return raising_memory_error(lambda: self._replayed(inputs, options))
                except MemoryError as full:
                    message = first_line(full)
                make_room()  # and drop a graph that failed half-way
                empty_cache()
        what, fix = TOO_LARGE
        raise DeviceFullError(device_full_message(what, message, fix), hint=fix, free_bytes=free_bytes())

    def _clear_all(self) -> None:
        """Drop the graphs of all caches that no other thread is using now."""
        self._graphs.clear()
        for cache in [each for each in _CACHES if each is not self]:
            if cache._lock.acquire(blocking=False):
                try:
                    cache._graphs.clear()
                finally:
                    cache._lock.release()

    def _replayed(self, inputs: Tensors, options: Mapping[str, Hashable]) -> dict[str, Tensor]:
        key = *options.items(), *((n, str(t.dtype), tuple(t.shape)) for n, t in sorted(inputs.items()))
        function = partial(self._function, **options)
        graph = self._graphs(key, lambda: self._recorder.record(function, {n: t.clone() for n, t in inputs.items()}))
        for name, tensor in inputs.items():
            graph.inputs[name].copy_(tensor)
        graph.replay()
        return {name: tensor.clone() for name, tensor in graph.outputs.items()}

    @property
    def size_bytes(self) -> int:
        """The device memory of all graphs."""
        return self._graphs.size


class CudaGraphCapturer:
    """Captures graphs with torch."""

    def record(self, function: Function, inputs: Tensors) -> CapturedGraph:
        """Capture the function. `CudaGraphCache` handles torch's errors of a full device."""
        import torch

        with capturing_alone():
            warm_up(lambda: function(inputs))
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # as the capture does, so that the difference is the graph's memory
            before = torch.cuda.memory_reserved()
            graph, outputs = captured(lambda: function(inputs))
            size = max(0, torch.cuda.memory_reserved() - before)
        return CapturedGraph(inputs=inputs, outputs=outputs, replay=graph.replay, size_bytes=size)
