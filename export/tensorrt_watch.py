"""What a TensorRT build is doing, step by step, and the way to end it.

TensorRT tells of phases inside phases, from threads of its own; an exception must not go back into it, so one that the
watcher raises is kept until the build has ended.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
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


def monitor_of(trt: Any, watch: Watch | None) -> Any:
    """A progress monitor of the library that tells `watch`, which ends the build by returning False.

    `check(graph)` raises after the build what ended it: `Cancelled`, or what `watch` raised.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._lock = threading.Lock()
            self._phases: dict[str, Phase] = {}
            self._failed: BaseException | None = None
            self._ended = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._tell(Phase(name=phase_name, inside=parent_phase, done=0, of=num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            known = self._phases.get(phase_name, Phase(name=phase_name, inside=None, done=0, of=step + 1))
            self._tell(Phase(name=phase_name, inside=known.inside, done=step + 1, of=known.of))
            return not self._ended

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._phases.pop(phase_name, None)

        def _tell(self, phase: Phase) -> None:
            with self._lock:
                self._phases[phase.name] = phase
                if watch is None or self._ended:
                    return
                try:
                    self._ended = watch(phase) is False
                except BaseException as failed:  # KeyboardInterrupt too: it would be lost inside the library
                    self._failed, self._ended = failed, True

        def check(self, graph: Path) -> None:
            if self._failed is not None:
                raise self._failed
            if self._ended:
                raise Cancelled(f"the building of {graph} was cancelled.")

    return Monitor()
