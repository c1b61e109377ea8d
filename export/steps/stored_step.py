"""Steps of a build whose files are kept in the store: made once in child processes, and read afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..store.store import Stored, fetch, has, intact, key_of, release
from .subprocess_task import ProgressHandler, run_in_subprocess


@dataclass(frozen=True, kw_only=True)
class StoredStep:
    """A step of a build.

    Attributes:
        depends_on: plain data of everything that the files depend on.
        label: describes the files in listings: `{"component": "unet", "kind": "trace", ...}`.
    """

    depends_on: Mapping[str, Any]
    label: Mapping[str, str]

    @property
    def is_stored(self) -> bool:
        """Whether the store has the files."""
        return has(key_of(self.depends_on))

    def stored(self) -> Stored | None:
        """Return the files if the store has them undamaged."""
        return intact(key_of(self.depends_on))

    def release(self) -> None:
        """End the use of the files by this process: each use holds an open file."""
        release(key_of(self.depends_on))

    def run(self, make: Callable[[Path], Mapping[str, Any]]) -> Stored:
        """Return the files, and make them first if the store does not have them. Raises as `fetch`."""
        return fetch(key_of(self.depends_on), make, label=self.label)

    def run_in_child(
        self, task: str, function: str, on_progress: ProgressHandler | None = None, /, **arguments: Any
    ) -> Stored:
        """Return the files; if needed, `function` makes them in a child process in the folder of its argument `out`.

        Args:
            task, function, on_progress, arguments: see `run_in_subprocess`. The function returns the notes, or None.

        Raises:
            CalotypeError: as `fetch` and `run_in_subprocess`.
        """

        def make(folder: Path) -> Mapping[str, Any]:
            return run_in_subprocess(task, function, on_progress, out=str(folder), **arguments).notes

        return self.run(make)
