"""Progress of a build: stages, elapsed time, and an estimate of the remaining time.

Three displays: bars on a terminal, lines in a pipe, JSON lines for machines. Each stage has a guess of its seconds. The
remaining time is the sum of the guesses for the stages ahead, scaled by measured time / guess of the finished stages.
`OpeningProgress` shows a bar for a model that is loaded. This module does not know what the stages do.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

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
    """The state of a build. `eta_s` is None until one stage has been timed, unless guesses count as times."""

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

    def __init__(self, stages: Sequence[Stage], display: Display, *, trusts_guesses: bool = False) -> None:
        """`trusts_guesses`: give a remaining time before one stage has been timed."""
        self._stages, self._display, self._trusts_guesses = list(stages), display, trusts_guesses
        self._began = self._stage_began = time.monotonic()
        self._done = 0
        self._last_step = self._began
        self._timed: list[tuple[float, float]] = []  # guess, taken
        self._current = ""

    @contextmanager
    def stage(self, name: str, *, cached: bool = False) -> Iterator[None]:
        """Run the block as the stage `name`. `cached`: the store has the result, so the stage is not timed."""
        self._current = name
        began = self._stage_began = time.monotonic()
        if not cached:
            self._report("start")
        yield
        guess = self._guess_s(name)
        if not cached and guess:
            self._timed.append((guess, time.monotonic() - began))
        self._done += 1
        self._stage_began = time.monotonic()
        self._report("found" if cached else "done")

    def note(self, text: str) -> None:
        """Report a remark on the current stage."""
        self._report("note", text)

    def step(self, text: str) -> None:
        """Report progress inside a long stage. Frequent calls are cheap: one event a second passes."""
        if time.monotonic() - self._last_step >= _STEP_S:
            self._last_step = time.monotonic()
            self._report("step", text)

    def _guess_s(self, name: str) -> float:
        return next((s.guess_s for s in self._stages if s.name == name), 0.0)

    def _eta_s(self) -> float | None:
        if not self._timed and not self._trusts_guesses:
            return None
        pace = sum(taken for _, taken in self._timed) / sum(guess for guess, _ in self._timed) if self._timed else 1.0
        ahead = self._stages[self._done :]
        current = self._guess_s(self._current) if any(s.name == self._current for s in ahead) else 0.0
        gone = min(time.monotonic() - self._stage_began, pace * current)
        return round(pace * sum(s.guess_s for s in ahead) - gone, 1)

    def _report(self, event: str, text: str = "") -> None:
        state = State(
            event=event,
            stage=self._current,
            done=self._done,
            of=len(self._stages),
            elapsed_s=round(time.monotonic() - self._began, 1),
            eta_s=self._eta_s(),
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
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            ProgressColumn,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
        )
        from rich.progress import Progress as LiveBars
        from rich.text import Text

        class Left(ProgressColumn):
            """Counts the remaining time down between two events."""

            def render(self, task: Any) -> Text:
                ends_s = task.fields["ends_s"]
                return Text("" if ends_s is None else f"about {clock(max(ends_s - time.monotonic(), 1))} left")

        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        more = (TimeElapsedColumn(), Left())
        self._live = LiveBars(*columns, *more, console=Console(stderr=True), transient=True)
        self._live.start()
        self._task = self._live.add_task("", total=None, ends_s=None)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, state: State) -> None:
        """Update the bar, and print a line for a finished stage or a note."""
        ends_s = None if state.eta_s is None else time.monotonic() + state.eta_s
        at = f"{state.stage}: {state.text}" if state.event == "step" else state.stage
        self._live.update(self._task, description=at, completed=state.done, total=state.of, ends_s=ends_s)
        lines = {"done": "[green]✓[/] {}", "found": "[dim]=[/] {} [dim](in the cache)[/]", "note": "  {}: {}"}
        if state.event in lines:
            self._live.console.print(lines[state.event].format(state.stage, state.text), highlight=False)


class OpeningProgress:
    """Shows the stages of a model that is loaded: a bar on a terminal, else a line for each stage."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    @contextmanager
    def over(self, stages: Sequence[Stage]) -> Iterator[None]:
        """Show a bar with these stages inside the block, if there are any, and this is a terminal's main thread."""
        main = threading.current_thread() is threading.main_thread()
        if not stages or not main or sys.stderr is None or not sys.stderr.isatty():
            yield
            return
        with Bars() as shown:
            self._progress = Progress(stages, shown, trusts_guesses=True)
            try:
                yield
            finally:
                self._progress = None

    @contextmanager
    def stage(self, name: str, line: str) -> Iterator[None]:
        """Run the block as a stage. Without a bar, print the line."""
        if self._progress is None:
            print(printable(line), file=sys.stderr)
            yield
        else:
            with self._progress.stage(name):
                yield
