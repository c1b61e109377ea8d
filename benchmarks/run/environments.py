"""An environment for each peer: virtual, pinned, and found by what is in it.

    CALOTYPE_HOME/bench/environments/NAME-DIGEST/         whole; DIGEST is of requirements.txt and Python's version
    CALOTYPE_HOME/bench/environments/NAME-DIGEST.failed   the sentence that the last attempt ended with
    CALOTYPE_HOME/bench/environments/.making-NAME-DIGEST/ under way, by whoever holds NAME-DIGEST.lock

A peer is a folder of `peers/` with a `peer.py`. Not known here: what a peer does, and how one is talked to. As an
environment is renamed once it is whole, the scripts in its `bin/` have lost their interpreter: use `python -m`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from calotype.errors import BackendError, InputError
from calotype.export.store.folders import clear
from calotype.export.store.gc import ENVIRONMENTS
from calotype.files import locks
from calotype.files.paths import write_atomic

__all__ = ["PEERS", "make", "python_of", "remove", "why_not", "worker_file"]

FOLDER: Final = Path(__file__).resolve().parent.parent / "peers"
PEERS: Final = tuple(sorted(path.parent.name for path in FOLDER.glob("*/peer.py")))

# What in the output of pip, and of a build that it ran, tells most: the first line with the first of these it has.
_CLUES: Final = (
    r"No space left on device",
    r"No matching distribution found for .+",
    r"\S+ \S+ depends on \S+.*",  # of a conflict
    r"CMake Error: .+",
    r"(?:fatal )?error: (?!subprocess-exited|metadata-gen).+",
    r"(?<=ERROR: ).+",
)
_BUILDING: Final = r"(?:Failed building wheel|Could not build wheels) for ([\w.-]+)"


def worker_file(name: str) -> Path:
    """The peer's `peer.py`, for `serve.py`. `InputError` where there is no such peer."""
    if name not in PEERS:
        raise InputError(f"there is no peer called {name!r}; there are {', '.join(PEERS)}.")
    return FOLDER / name / "peer.py"


def python_of(name: str) -> Path | None:
    """The Python of the peer's environment; None where it has not been made, or its requirements have changed since."""
    python = _place(name) / "bin" / "python"
    if not python.exists():
        return None
    ENVIRONMENTS.hold(python.parent.parent.name)
    return python


def why_not(name: str) -> str | None:
    """Why the environment could not be made when that was last tried; None where it was not tried, or is there."""
    if python_of(name) is not None:
        return None
    try:
        return _failed(_place(name)).read_text()
    except FileNotFoundError:
        return None


def make(name: str, *, show: Callable[[str], None] | None = None) -> Path:
    """The Python of the peer's environment, which is made if it is not there: minutes, and up to gigabytes.

    `show` is told pip's lines as they come. Raises `BackendError` with what stopped it, which `why_not` remembers.
    """
    place, requirements = _place(name), worker_file(name).with_name("requirements.txt")
    place.parent.mkdir(parents=True, exist_ok=True)
    with locks.exclusive(_beside(place, ".lock"), wait_for=f"the environment of {name}"):
        if (python := python_of(name)) is not None:
            return python
        half_made = place.with_name(f".making-{place.name}")
        try:
            clear(half_made)  # of a process that was killed
            _fill(half_made, requirements, show)
            half_made.rename(place)
        except (BackendError, OSError) as failed:
            shutil.rmtree(half_made, ignore_errors=True)
            told = f"the environment of {name} could not be made: {failed}"
            write_atomic(_failed(place), told.encode())
            raise BackendError(told) from None
        _failed(place).unlink(missing_ok=True)
        ENVIRONMENTS.hold(place.name)
    return place / "bin" / "python"


def remove(name: str) -> None:
    """Everything kept of the peer's environments, those of older requirements too."""
    worker_file(name)
    for path in [*_root().glob(f"{name}-*"), *_root().glob(f".making-{name}-*")]:
        clear(path)


def _fill(folder: Path, requirements: Path, show: Callable[[str], None] | None) -> None:
    _run([sys.executable, "-m", "venv", folder], show)
    pip = ["-m", "pip", "install", "--no-input", "--progress-bar", "off", "-r"]
    _run([folder / "bin" / "python", *pip, requirements], show)


def _root() -> Path:
    return ENVIRONMENTS.root


def _place(name: str) -> Path:
    """Where the environment belongs."""
    version = ".".join(map(str, sys.version_info[:3]))
    said = worker_file(name).with_name("requirements.txt").read_bytes() + version.encode()
    return _root() / f"{name}-{hashlib.sha256(said).hexdigest()[:12]}"


def _failed(place: Path) -> Path:
    return _beside(place, ".failed")


def _beside(place: Path, suffix: str) -> Path:
    return place.with_name(place.name + suffix)


def _run(command: Sequence[str | Path], show: Callable[[str], None] | None) -> None:
    """Run to the end; `BackendError` with the line that says why it failed."""
    # Ours would lead the child's imports astray; a build takes the cores that we may use, not all there are.
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    environment = {"CMAKE_BUILD_PARALLEL_LEVEL": str(len(os.sched_getaffinity(0))), **kept}
    lines: list[str] = []
    with subprocess.Popen(
        list(map(str, command)),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            lines.append(line.rstrip())
            if show is not None:
                show(lines[-1])
    if running.returncode:
        raise BackendError(_reason(lines) or f"{Path(command[0]).name} ended with status {running.returncode}.")


def _reason(lines: Sequence[str]) -> str:
    """The line of a failed installation that tells most; "" where none does."""
    text = "\n".join(lines)
    found = next((match for clue in _CLUES if (match := re.search(clue, text))), None)
    if found is None:
        return ""
    building = re.search(_BUILDING, text)
    return found.group()[:300].rstrip(". ") + (f", in building {building.group(1)}." if building else ".")
