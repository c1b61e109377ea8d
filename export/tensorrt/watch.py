"""Progress of a TensorRT build, and cancellation.

TensorRT reports nested phases from its own threads. An exception must not reach the library, so the watcher stores it
until the build has ended.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calotype.errors import Cancelled


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A phase and its finished steps. `inside` is the enclosing phase; None for the outermost."""

    name: str
    inside: str | None
    done: int
    of: int


Watch = Callable[[Phase], bool]


class Watcher:
    """Calls `watch` at every step, until it returns False or raises. Thread-safe."""

    def __init__(self, watch: Watch | None) -> None:
        self._watch = watch
        self._lock = threading.Lock()
        self._phases: dict[str, Phase] = {}
        self._failed: BaseException | None = None
        self._ended = False

    def start(self, name: str, inside: str | None, steps: int) -> None:
        """Report that a phase begins."""
        self._report(Phase(name=name, inside=inside, done=0, of=steps))

    def step(self, name: str, step: int) -> bool:
        """Report that a step is done. Return whether the build may continue."""
        phase = self._phases.get(name, Phase(name=name, inside=None, done=0, of=step + 1))
        self._report(replace(phase, done=step + 1))
        return not self._ended

    def finish(self, name: str) -> None:
        """Report that a phase ends, perhaps before its last step."""
        with self._lock:
            self._phases.pop(name, None)

    def check(self, graph: Path) -> None:
        """Raise what ended the build: `Cancelled`, or the exception of `watch`. Call it after the build."""
        if self._failed is not None:
            raise self._failed
        if self._ended:
            raise Cancelled(f"the build of {graph} was cancelled.")

    def _report(self, phase: Phase) -> None:
        with self._lock:
            self._phases[phase.name] = phase
            if self._watch is None or self._ended:
                return
            try:
                self._ended = self._watch(phase) is False
            except BaseException as error:  # KeyboardInterrupt too: it would be lost inside the library
                self._failed, self._ended = error, True


def monitor_of(trt: Any, watcher: Watcher) -> Any:
    """Return a progress monitor of the library that reports to the watcher."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            watcher.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return watcher.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            watcher.finish(phase_name)

    return Monitor()
