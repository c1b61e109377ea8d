"""Captures of CUDA graphs: one at a time in a process, all on one stream. Imports torch when it is used.

torch allows one capture at a time, and one that runs during the set-up of another would see its synchronization. The
streams of torch's pool repeat after 32, so a new stream for each capture would one day be a stream that another thread
uses. Each stream also keeps a workspace of cuBLAS, 32 MiB on Hopper, for good.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

_WARM_UPS = 2
_TIMED_CALLS, _REPLAYS = 10, 7
CAPTURES = threading.RLock()  # held while something captures; a capture times attention in its warm-up
_streams: list[Any] = []
_warming: ContextVar[bool] = ContextVar("warming", default=False)


def warming_up() -> bool:
    """Return whether the running calls prepare a capture: the time to search for the fastest algorithm."""
    return _warming.get()


@contextmanager
def capturing_alone() -> Iterator[None]:
    """Let nothing else capture inside of the block, and make the stream of captures the current one."""
    import torch

    with CAPTURES:
        if not _streams:
            _streams.append(torch.cuda.Stream())  # type: ignore[no-untyped-call]  # the default one cannot capture
        with torch.cuda.stream(_streams[0]):
            yield


def warm_up(function: Callable[[], object]) -> None:
    """Call a function as often as a capture needs: libraries load kernels at the first calls, which it forbids."""
    token = _warming.set(True)
    try:
        for _ in range(_WARM_UPS):
            function()
    finally:
        _warming.reset(token)


def captured(function: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
    """Return the graph of what a function launches, and its result. Call it inside of `capturing_alone`.

    The workspace of cuBLAS belongs to the graph's own memory. `torch.compile` releases the workspaces of all streams,
    and a graph that used one of them would then write to memory of others.
    """
    import torch

    release: Callable[[], None] = torch._C._cuda_clearCublasWorkspaces
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    release()
    try:
        # "thread_local": other threads may use the device meanwhile, and the graph does not include their work.
        with torch.cuda.graph(graph, stream=_streams[0], capture_error_mode="thread_local"):
            result = function()
    finally:
        release()
    return graph, result


def graph_seconds(run: Callable[[], object]) -> float:
    """Return the median seconds of a run on the device, without the host's part: from replays of a graph of ten."""
    import torch

    def several() -> None:
        for _ in range(_TIMED_CALLS):
            run()

    with capturing_alone():
        warm_up(run)
        graph, _ = captured(several)
        graph.replay()
        times = []
        for _ in range(_REPLAYS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(float(start.elapsed_time(end)) / 1000 / _TIMED_CALLS)
    return statistics.median(times)
