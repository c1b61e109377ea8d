"""How far a build has come: stages with the time gone, and what is left by the pace so far.

Three ways to show it: bars on a terminal, lines in a pipe, JSON lines for machines. Each stage comes with a guess of
its seconds; what is left is the guesses of the stages to come, scaled by how those that are done compare with theirs.
Knows nothing of what the stages do.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from calotype.errors.printable import printable

_STEP_S = 1.0  # between two steps that are told
_LINE_S = 10.0  # between two lines of them


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One thing to do. `guess_s` is how long it takes on a middling machine, in seconds."""

    name: str
    guess_s: float


@dataclass(frozen=True, kw_only=True)
class State:
    """Where the build stands. `eta_s` is None until something has been timed."""

    event: str  # "start", "done", "found" (in the store), "note", "step" (within a stage, about once a second)
    stage: str
    done: int
    of: int
    elapsed_s: float
    eta_s: float | None
    text: str = ""


class Show(Protocol):
    """What is done with a state."""

    def __call__(self, state: State) -> None:
        """Show it."""


class Progress:
    """Goes through the stages in their order."""

    def __init__(self, stages: Sequence[Stage], show: Show) -> None:
        self._stages, self._show = list(stages), show
        self._began = time.monotonic()
        self._done = 0
        self._scheduler_step = self._began
        self._timed: list[tuple[float, float]] = []  # guess, taken
        self._current = ""

    @contextmanager
    def stage(self, name: str, *, found: bool = False) -> Iterator[None]:
        """Work on the stage inside the block. `found`: there is nothing to do, and it says nothing of the pace."""
        self._current = name
        if not found:
            self._tell("start")
        began = time.monotonic()
        yield
        guess = next((s.guess_s for s in self._stages if s.name == name), 0.0)
        if not found and guess:
            self._timed.append((guess, time.monotonic() - began))
        self._done += 1
        self._tell("found" if found else "done")

    def note(self, text: str) -> None:
        """Something worth saying inside a stage."""
        self._tell("note", text)

    def step(self, text: str) -> None:
        """How far a long stage has come. Call it as often as you like."""
        if time.monotonic() - self._scheduler_step >= _STEP_S:
            self._scheduler_step = time.monotonic()
            self._tell("step", text)

    def _tell(self, event: str, text: str = "") -> None:
        elapsed = time.monotonic() - self._began
        state = State(
            event=event,
            stage=self._current,
            done=self._done,
            of=len(self._stages),
            elapsed_s=round(elapsed, 1),
            eta_s=self._left(),
            text=printable(text),
        )
        self._show(state)

    def _left(self) -> float | None:
        if not self._timed:
            return None
        pace = sum(taken for _, taken in self._timed) / sum(guess for guess, _ in self._timed)
        return round(pace * sum(s.guess_s for s in self._stages[self._done :]), 1)


@contextmanager
def quietly() -> Iterator[Show]:
    """Show nothing."""
    yield lambda state: None


def json_lines(state: State) -> None:
    """One JSON object a line, on stdout."""
    print(json.dumps(vars(state)), flush=True)


@contextmanager
def plain_lines() -> Iterator[Show]:
    """A line for each stage, and now and then for a step of a long one, on stderr: for pipes and logs."""
    last_s = 0.0

    def show(state: State) -> None:
        nonlocal last_s
        if state.event == "start" or (state.event == "step" and state.elapsed_s - last_s < _LINE_S):
            return
        last_s = state.elapsed_s
        left = "" if state.eta_s is None or state.done == state.of else f", about {clock(state.eta_s)} left"
        what = {"found": "in the store", "done": "done"}.get(state.event, state.text)
        head = f"[{state.done}/{state.of}]"
        head = " " * len(head) if state.event in ("note", "step") else head
        print(f"{head} {state.stage}: {what}  ({clock(state.elapsed_s)}{left})", file=sys.stderr, flush=True)

    yield show


def clock(seconds: float) -> str:
    """Seconds as people say them: 43 s, 2 min 05 s, 1 h 12 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )


@contextmanager
def bars() -> Iterator[Show]:
    """A live bar on the terminal, with each finished stage on a line above it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns: tuple[Any, ...] = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    columns = (*columns, TimeElapsedColumn(), TextColumn("{task.fields[left]}"))
    with Bars(*columns, console=Console(stderr=True), transient=True) as live:
        task = live.add_task("", total=None, left="")

        def show(state: State) -> None:
            left = "" if state.eta_s is None else f"about {clock(state.eta_s)} left"
            at = f"{state.stage}: {state.text}" if state.event == "step" else state.stage
            live.update(task, description=at, completed=state.done, total=state.of, left=left)
            if state.event not in ("start", "step"):
                mark = {"done": "[green]✓[/]", "found": "[dim]=[/]", "note": " "}[state.event]
                told = {"done": "", "found": " [dim](in the store)[/]", "note": f": {state.text}"}[state.event]
                live.console.print(f"{mark} {state.stage}{told}", highlight=False)

        yield show
