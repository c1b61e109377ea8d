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
from typing import Self

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


class Display:
    """Shows the progress of a build while it is entered. This one shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def show(self, state: State) -> None:
        """Display a change of the state."""


class Progress:
    """Tracks the stages of a build and reports each change to `display`."""

    def __init__(self, stages: Sequence[Stage], display: Display) -> None:
        self._stages, self._display = list(stages), display
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
        eta_s = None
        if self._timed:
            pace = sum(taken for _, taken in self._timed) / sum(guess for guess, _ in self._timed)
            eta_s = round(pace * sum(s.guess_s for s in self._stages[self._done :]), 1)
        state = State(
            event=event,
            stage=self._current,
            done=self._done,
            of=len(self._stages),
            elapsed_s=round(time.monotonic() - self._began, 1),
            eta_s=eta_s,
            text=printable(text),
        )
        self._display.show(state)


def clock(seconds: float) -> str:
    """Format a duration: 43 s, 2 min 05 s, 1 h 12 min."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    minutes, rest = divmod(total, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class JsonLines(Display):
    """Prints each state as one line of JSON on stdout."""

    def show(self, state: State) -> None:
        """Print the state."""
        print(json.dumps(vars(state)), flush=True)


class PlainLines(Display):
    """Prints a line for each stage on stderr, and one every 10 s inside a long stage: for pipes and logs."""

    _last_s = 0.0

    def show(self, state: State) -> None:
        """Print a line, except for the start of a stage and frequent steps."""
        if state.event == "start" or (state.event == "step" and state.elapsed_s - self._last_s < _LINE_S):
            return
        self._last_s = state.elapsed_s
        left = "" if state.eta_s is None or state.done == state.of else f", about {clock(state.eta_s)} left"
        what = {"found": "in the cache", "done": "done"}.get(state.event, state.text)
        head = f"[{state.done}/{state.of}]"
        head = " " * len(head) if state.event in ("note", "step") else head
        print(f"{head} {state.stage}: {what}  ({clock(state.elapsed_s)}{left})", file=sys.stderr, flush=True)


class Bars(Display):
    """Shows a live bar on the terminal, with a line above it for each finished stage."""

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as LiveBars

        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        more = (TimeElapsedColumn(), TextColumn("{task.fields[left]}"))
        self._live = LiveBars(*columns, *more, console=Console(stderr=True), transient=True)
        self._live.start()
        self._task = self._live.add_task("", total=None, left="")
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, state: State) -> None:
        """Update the bar, and print a line for a finished stage or a note."""
        left = "" if state.eta_s is None else f"about {clock(state.eta_s)} left"
        at = f"{state.stage}: {state.text}" if state.event == "step" else state.stage
        self._live.update(self._task, description=at, completed=state.done, total=state.of, left=left)
        lines = {"done": "[green]✓[/] {}", "found": "[dim]=[/] {} [dim](in the cache)[/]", "note": "  {}: {}"}
        if state.event in lines:
            self._live.console.print(lines[state.event].format(state.stage, state.text), highlight=False)
