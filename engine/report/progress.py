"""A progress bar over the events of a call: in a terminal, or in a notebook."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .result import Event


class _Update(Protocol):
    def __call__(self, step: int, total: int) -> None: ...


def with_progress(events: Iterator[Event], name: str = "generating") -> Iterator[Event]:
    """Yield the events, and show how many there were."""
    with _in_notebook(name) if _is_notebook() else _in_terminal(name) as update:
        for event in events:
            update(event.step, event.total)
            yield event


def _is_notebook() -> bool:
    """Tell whether a notebook shows the output of this process: its shell is IPython's kernel."""
    ipython = sys.modules.get("IPython")
    shell: Any = None if ipython is None else ipython.get_ipython()
    return type(shell).__name__ == "ZMQInteractiveShell"


@contextmanager
def _in_terminal(name: str) -> Iterator[_Update]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=None)
        yield lambda step, total: progress.update(task, completed=step, total=total)


@contextmanager
def _in_notebook(name: str) -> Iterator[_Update]:
    ipython = importlib.import_module("IPython.display")
    handle = ipython.display(ipython.HTML(f"<progress></progress> {name}"), display_id=True)

    def update(step: int, total: int) -> None:
        handle.update(ipython.HTML(f'<progress value="{step}" max="{total}"></progress> {name} {step}/{total}'))

    yield update
