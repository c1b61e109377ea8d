"""Captured CUDA graphs of one function of tensors: a graph for each set of shapes, kept within a number of bytes.

A graph replays launches over fixed addresses. So inputs are copied into buffers of its own, outputs are copied out
before the next replay, and one lock lets one caller at a time in between. Shapes that were not seen for longest give
way to new ones. A pool of memory is given back as a whole, so each graph has one of its own: what is dropped is free,
at the price that graphs of different sizes do not lie on top of each other.

A `GraphCapturer` records and replays: `CudaGraphCapturer` on a GPU, another in tests. Knows nothing of networks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from ..errors import DeviceFullError, first_line
from ..system.lru_cache import LruCache
from .device import empty_cache, no_room, raising_memory_error

if TYPE_CHECKING:
    from torch import Tensor

Tensors: TypeAlias = "Mapping[str, Tensor]"
Function: TypeAlias = "Callable[[Tensors], dict[str, Tensor]]"


@dataclass(frozen=True, kw_only=True)
class CapturedGraph:
    """A graph. `outputs` are written by `replay`, and hold the last replay's numbers until the next."""

    inputs: Tensors
    outputs: Tensors
    replay: Callable[[], None]
    size_bytes: int  # that the capture added to what the device holds


class GraphCapturer(Protocol):
    """Makes graphs on a device."""

    def record(self, function: Function, inputs: Tensors) -> CapturedGraph:
        """Capture the function over these inputs, which become the graph's own. `MemoryError` where there's no room."""


class CudaGraphCache:
    """A function, replayed. Threads may share it; all must call on one stream."""

    def __init__(self, function: Function, recorder: GraphCapturer, *, limit_bytes: int) -> None:
        self._function, self._recorder = function, recorder
        self._lock = threading.Lock()
        self._kept: LruCache[CapturedGraph] = LruCache(limit_bytes, lambda graph: graph.size_bytes)

    def __call__(self, inputs: Tensors) -> dict[str, Tensor]:
        """The function's outputs, in tensors that are the caller's.

        Raises `DeviceFullError` where it does not fit into the device's memory, alone among the graphs; the next call
        with smaller inputs works.
        """
        with self._lock:
            for _ in range(2):
                try:
                    return raising_memory_error(lambda: self._replayed(inputs))
                except MemoryError as full:
                    told = first_line(full)
                self._kept.clear()  # all others give way, and what failed half-way is not kept
                empty_cache()
        raise DeviceFullError(no_room("a run of this size", told, "ask for smaller pictures, or fewer at once"))

    def _replayed(self, inputs: Tensors) -> dict[str, Tensor]:
        graph = self._graph(inputs)
        for name, tensor in inputs.items():
            graph.inputs[name].copy_(tensor)
        graph.replay()
        return {name: tensor.clone() for name, tensor in graph.outputs.items()}

    @property
    def size_bytes(self) -> int:
        """What all graphs hold."""
        return self._kept.size

    def _graph(self, inputs: Tensors) -> CapturedGraph:
        key = tuple((n, str(t.dtype), tuple(t.shape)) for n, t in sorted(inputs.items()))
        return self._kept(key, lambda: self._recorder.record(self._function, {n: t.clone() for n, t in inputs.items()}))


class CudaGraphCapturer:
    """Captures with torch."""

    def record(self, function: Function, inputs: Tensors) -> CapturedGraph:
        """What torch raises where the device is full is for `CudaGraphCache` to see to."""
        import torch

        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # nothing can be captured on the default stream
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            for _ in range(2):  # libraries choose and load kernels at first calls, which a capture forbids
                function(inputs)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # as the capture does: what is held afterwards and not before is the graph's
        before, graph = torch.cuda.memory_reserved(), torch.cuda.CUDAGraph()
        # "thread_local": what other threads do on the device meanwhile is no part of it, and allowed.
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            outputs = function(inputs)
        size = max(0, torch.cuda.memory_reserved() - before)
        return CapturedGraph(inputs=inputs, outputs=outputs, replay=graph.replay, size_bytes=size)
