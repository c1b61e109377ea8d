"""What a TensorRT build is doing, step by step, and the way to end it.

TensorRT tells of phases inside phases, from threads of its own; an exception must not go back into it, so one that the
watcher raises is kept until the build has ended.
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
    """A phase with the steps done so far. `inside` is the phase that it is a part of, None for the outermost."""

    name: str
    inside: str | None
    done: int
    of: int


Watch = Callable[[Phase], bool]


class Watcher:
    """Tells `watch` of every step, until it returns False or raises. Threads may share it."""

    def __init__(self, watch: Watch | None) -> None:
        self._watch = watch
        self._lock = threading.Lock()
        self._phases: dict[str, Phase] = {}
        self._failed: BaseException | None = None
        self._ended = False

    def start(self, name: str, inside: str | None, steps: int) -> None:
        """A phase begins."""
        self._tell(Phase(name=name, inside=inside, done=0, of=steps))

    def step(self, name: str, step: int) -> bool:
        """A step of it is done; whether the build may go on."""
        phase = self._phases.get(name, Phase(name=name, inside=None, done=0, of=step + 1))
        self._tell(replace(phase, done=step + 1))
        return not self._ended

    def finish(self, name: str) -> None:
        """It ends, maybe before its last step."""
        with self._lock:
            self._phases.pop(name, None)

    def check(self, graph: Path) -> None:
        """After the build: raise what ended it, `Cancelled` or what `watch` raised."""
        if self._failed is not None:
            raise self._failed
        if self._ended:
            raise Cancelled(f"the building of {graph} was cancelled.")

    def _tell(self, phase: Phase) -> None:
        with self._lock:
            self._phases[phase.name] = phase
            if self._watch is None or self._ended:
                return
            try:
                self._ended = self._watch(phase) is False
            except BaseException as failed:  # KeyboardInterrupt too: it would be lost inside the library
                self._failed, self._ended = failed, True


def monitor_of(trt: Any, watcher: Watcher) -> Any:
    """A progress monitor of the library that tells the watcher."""

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
