"""Virtual environments of the peers, pinned, and named by the digest of their requirements.

    CALOTYPE_HOME/bench/environments/NAME-DIGEST/         complete; DIGEST covers requirements.txt and Python's version
    CALOTYPE_HOME/bench/environments/NAME-DIGEST.failed   the error of the last attempt
    CALOTYPE_HOME/bench/environments/.making-NAME-DIGEST/ in progress, by the holder of NAME-DIGEST.lock

A peer is a folder of `peers/` with a `peer.py`. This module does not know what a peer does. A complete environment is
renamed, which breaks the interpreter paths of the scripts in its `bin/`: use `python -m`.
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

__all__ = ["PEERS", "failure_reason", "make", "python_of", "remove", "worker_file"]

FOLDER: Final = Path(__file__).resolve().parent.parent / "peers"
PEERS: Final = tuple(sorted(path.parent.name for path in FOLDER.glob("*/peer.py")))

# The most useful line in the output of pip and of its builds: the first match of the first pattern that matches.
_CLUES: Final = (
    r"No space left on device",
    r"No matching distribution found for .+",
    r"\S+ \S+ depends on \S+.*",  # a conflict
    r"CMake Error: .+",
    r"(?:fatal )?error: (?!subprocess-exited|metadata-gen).+",
    r"(?<=ERROR: ).+",
)
_BUILDING: Final = r"(?:Failed building wheel|Could not build wheels) for ([\w.-]+)"


def worker_file(name: str) -> Path:
    """Return the peer's `peer.py`, for `serve.py`. Raises `InputError` for an unknown peer."""
    if name not in PEERS:
        raise InputError(f"unknown peer {name!r}. Use {', '.join(PEERS)}.")
    return FOLDER / name / "peer.py"


def python_of(name: str) -> Path | None:
    """Return the Python of the peer's environment, or None if it does not exist for these requirements."""
    python = _place(name) / "bin" / "python"
    if not python.exists():
        return None
    ENVIRONMENTS.hold(python.parent.parent.name)
    return python


def failure_reason(name: str) -> str | None:
    """Return why the last attempt to make the environment failed; None without a failed attempt."""
    if python_of(name) is not None:
        return None
    try:
        return _failed(_place(name)).read_text()
    except FileNotFoundError:
        return None


def make(name: str, *, show: Callable[[str], None] | None = None) -> Path:
    """Make the peer's environment if it does not exist, and return its Python. Takes minutes, and up to gigabytes.

    `show` gets the lines of pip. Raises `BackendError` with the reason, which `failure_reason` returns afterwards.
    """
    place, requirements = _place(name), worker_file(name).with_name("requirements.txt")
    place.parent.mkdir(parents=True, exist_ok=True)
    with locks.exclusive(_with_suffix(place, ".lock"), wait_for=f"the environment of {name}"):
        if (python := python_of(name)) is not None:
            return python
        half_made = place.with_name(f".making-{place.name}")
        try:
            clear(half_made)  # left by a process that was killed
            _fill(half_made, requirements, show)
            half_made.rename(place)
        except (BackendError, OSError) as failed:
            shutil.rmtree(half_made, ignore_errors=True)
            message = f"cannot make the environment of {name}: {failed}"
            write_atomic(_failed(place), message.encode())
            raise BackendError(message) from None
        _failed(place).unlink(missing_ok=True)
        ENVIRONMENTS.hold(place.name)
    return place / "bin" / "python"


def remove(name: str) -> None:
    """Delete all environments of the peer, including those of older requirements."""
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
    """Return the path of the environment."""
    version = ".".join(map(str, sys.version_info[:3]))
    digested = worker_file(name).with_name("requirements.txt").read_bytes() + version.encode()
    return _root() / f"{name}-{hashlib.sha256(digested).hexdigest()[:12]}"


def _failed(place: Path) -> Path:
    return _with_suffix(place, ".failed")


def _with_suffix(place: Path, suffix: str) -> Path:
    return place.with_name(place.name + suffix)


def _run(command: Sequence[str | Path], show: Callable[[str], None] | None) -> None:
    """Run a command to its end. Raises `BackendError` with the line that explains a failure."""
    # Our paths would mix up the child's imports. A build uses the cores that we may use, not all of the machine.
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
    """Return the most useful line of a failed installation, or ""."""
    text = "\n".join(lines)
    match = next((match for clue in _CLUES if (match := re.search(clue, text))), None)
    if match is None:
        return ""
    building = re.search(_BUILDING, text)
    return match.group()[:300].rstrip(". ") + (f", in building {building.group(1)}." if building else ".")
