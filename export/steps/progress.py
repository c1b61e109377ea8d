"""Progress of a build: stages, elapsed time, and an estimate of the remaining time.

Three displays: bars on a terminal, lines in a pipe, JSON lines for machines. Each stage has a guess of its seconds. The
remaining time is the sum of the guesses for the stages ahead, scaled by measured time / guess of the finished stages.
This module does not know what the stages do.
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

_STEP_S = 1.0  # between two "step" events
_LINE_S = 10.0  # between two printed lines of "step" events


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a build. `guess_s` is its time on an average machine, in seconds."""

    name: str
    guess_s: float


@dataclass(frozen=True, kw_only=True)
class State:
    """The state of a build. `eta_s` is None until one stage has been timed."""

    event: str  # "start", "done", "found" (in the store), "note", "step" (within a stage, about once a second)
    stage: str
    done: int
    of: int
    elapsed_s: float
    eta_s: float | None
    text: str = ""


class Show(Protocol):
    """A function that displays a state."""

    def __call__(self, state: State) -> None:
        """Display the state."""


class Progress:
    """Tracks the stages of a build and reports each change to `show`."""

    def __init__(self, stages: Sequence[Stage], show: Show) -> None:
        self._stages, self._show = list(stages), show
        self._began = time.monotonic()
        self._done = 0
        self._last_step = self._began
        self._timed: list[tuple[float, float]] = []  # guess, taken
        self._current = ""

    @contextmanager
    def stage(self, name: str, *, cached: bool = False) -> Iterator[None]:
        """Run the block as the stage `name`. `cached`: the store has the result, so the stage is not timed."""
        self._current = name
        if not cached:
            self._report("start")
        began = time.monotonic()
        yield
        guess = next((s.guess_s for s in self._stages if s.name == name), 0.0)
        if not cached and guess:
            self._timed.append((guess, time.monotonic() - began))
        self._done += 1
        self._report("found" if cached else "done")

    def note(self, text: str) -> None:
        """Report a remark on the current stage."""
        self._report("note", text)

    def step(self, text: str) -> None:
        """Report progress inside a long stage. Frequent calls are cheap: one event a second passes."""
        if time.monotonic() - self._last_step >= _STEP_S:
            self._last_step = time.monotonic()
            self._report("step", text)

    def _report(self, event: str, text: str = "") -> None:
        elapsed = time.monotonic() - self._began
        state = State(
            event=event,
            stage=self._current,
            done=self._done,
            of=len(self._stages),
            elapsed_s=round(elapsed, 1),
            eta_s=self._remaining_s(),
            text=printable(text),
        )
        self._show(state)

    def _remaining_s(self) -> float | None:
        if not self._timed:
            return None
        pace = sum(taken for _, taken in self._timed) / sum(guess for guess, _ in self._timed)
        return round(pace * sum(s.guess_s for s in self._stages[self._done :]), 1)


@contextmanager
def quietly() -> Iterator[Show]:
    """Show nothing."""
    yield lambda state: None


def json_lines(state: State) -> None:
    """Print the state as one line of JSON on stdout."""
    print(json.dumps(vars(state)), flush=True)


@contextmanager
def plain_lines() -> Iterator[Show]:
    """Print a line for each stage on stderr, and one every 10 s inside a long stage: for pipes and logs."""
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
    """Format a duration: 43 s, 2 min 05 s, 1 h 12 min."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    minutes, rest = divmod(total, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


@contextmanager
def bars() -> Iterator[Show]:
    """Show a live bar on the terminal, with a line above it for each finished stage."""
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
                suffix = {"done": "", "found": " [dim](in the store)[/]", "note": f": {state.text}"}[state.event]
                live.console.print(f"{mark} {state.stage}{suffix}", highlight=False)

        yield show
