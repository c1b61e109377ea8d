"""When one call does what, as a Chrome trace (chrome://tracing, https://ui.perfetto.dev).

Stages and networks are spans wherever nobody looks too, which costs nothing. Where PyTorch computes, its own profiler
looks, and has the spans beside its operators and a GPU's kernels; elsewhere the trace holds the spans alone.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError


@dataclass
class _Timeline:
    """Spans as a Chrome trace's complete events, in microseconds."""

    torch: Any = None  # where its profiler looks
    events: list[dict[str, Any]] = field(default_factory=list)


_watching: ContextVar[_Timeline | None] = ContextVar("calotype_timeline", default=None)


@contextmanager
def span(name: str) -> Iterator[None]:
    """The block is a span of this name in the trace of whoever watches this thread's call."""
    timeline = _watching.get()
    if timeline is None:
        yield
        return
    if timeline.torch is not None:  # which keeps its own
        with timeline.torch.profiler.record_function(name):
            yield
        return
    began = time.perf_counter_ns()
    try:
        yield
    finally:
        took = time.perf_counter_ns() - began
        place = {"pid": os.getpid(), "tid": threading.get_ident()}
        timeline.events.append({"name": name, "ph": "X", "ts": began / 1e3, "dur": took / 1e3, **place})


@contextmanager
def traced(path: Path, *, by_torch: bool) -> Iterator[None]:
    """Watch the block, and leave its trace in `path`. Raises `InputError` where it cannot be written."""
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} to write {path.name} into.")
    timeline = _Timeline(torch=_torch() if by_torch else None)
    token = _watching.set(timeline)
    try:
        if timeline.torch is None:
            yield
            text = json.dumps({"traceEvents": timeline.events, "displayTimeUnit": "ms"})
            path.write_text(text, encoding="utf-8")
        else:
            profiler = timeline.torch.profiler
            with profiler.profile(activities=profiler.supported_activities()) as looked:
                yield
            looked.export_chrome_trace(str(path))
    except OSError as failed:
        raise InputError(f"{path} cannot be written: {failed.strerror or failed}.") from None
    finally:
        _watching.reset(token)


@dataclass
class Stopwatch:
    """Adds up seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time inside the block towards `name`."""
        began = time.perf_counter()
        try:
            with span(name):
                yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


def _torch() -> Any:
    import torch

    return torch
