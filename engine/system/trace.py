"""Chrome trace of one call (open it in chrome://tracing or https://ui.perfetto.dev), and a stopwatch.

Stages and networks are always spans, which costs nothing without a trace. On PyTorch backends, PyTorch's profiler
records the spans together with its operators and the GPU's kernels. On other backends the trace only has the spans.
"""

from __future__ import annotations

import importlib
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

    torch: Any = None  # the module, if its profiler records
    events: list[dict[str, Any]] = field(default_factory=list)


_timeline_var: ContextVar[_Timeline | None] = ContextVar("calotype_timeline", default=None)


@contextmanager
def span(name: str) -> Iterator[None]:
    """Record the block as a span of this name, if this thread's call has a trace."""
    timeline = _timeline_var.get()
    if timeline is None:
        yield
        return
    if timeline.torch is not None:  # its profiler records the span
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
    """Record the block and write its trace to `path`. Raises `InputError` if that fails."""
    if not path.parent.is_dir():
        message = f"Cannot write {path.name}: there is no folder {path.parent}."
        raise InputError(message, argument="trace", got=str(path), expected="a file in a folder that exists")
    timeline = _Timeline(torch=importlib.import_module("torch") if by_torch else None)
    token = _timeline_var.set(timeline)
    try:
        if timeline.torch is None:
            yield
            text = json.dumps({"traceEvents": timeline.events, "displayTimeUnit": "ms"})
            path.write_text(text, encoding="utf-8")
        else:
            profiler = timeline.torch.profiler
            with profiler.profile(activities=profiler.supported_activities()) as profile:
                yield
            profile.export_chrome_trace(str(path))
    except OSError as error:
        message = f"Cannot write {path}: {error.strerror or error}."
        raise InputError(message, argument="trace", got=str(path)) from None
    finally:
        _timeline_var.reset(token)


@dataclass
class Stopwatch:
    """Adds up seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to `name`."""
        began = time.perf_counter()
        try:
            with span(name):
                yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
