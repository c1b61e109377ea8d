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

from .worker import FOREIGN

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
        raise InputError(f"unknown peer {name!r}. Use {', '.join(PEERS)}.", argument="name", got=name)
    return FOLDER / name / "peer.py"


def python_of(name: str) -> Path | None:
    """Return the Python of the peer's environment, or None if it does not exist for these requirements."""
    place = _place(name)
    if not (place / "bin" / "python").exists():
        return None
    ENVIRONMENTS.hold(place.name)
    return place / "bin" / "python"


def failure_reason(name: str) -> str | None:
    """Return why the last attempt to make the environment failed; None without a failed attempt."""
    try:
        return None if python_of(name) else _failed(_place(name)).read_text()
    except FileNotFoundError:
        return None


def make(name: str, *, show: Callable[[str], None] = lambda line: None) -> Path:
    """Make the peer's environment if it does not exist, and return its Python. Takes minutes, and up to gigabytes.

    `show` gets the lines of pip. Raises `BackendError` with the reason, which `failure_reason` returns afterwards.
    """
    place, requirements = _place(name), worker_file(name).with_name("requirements.txt")
    place.parent.mkdir(parents=True, exist_ok=True)
    with locks.exclusive(place.with_name(f"{place.name}.lock"), wait_for=f"the environment of {name}"):
        if (python := python_of(name)) is not None:
            return python
        partial = place.with_name(f".making-{place.name}")
        pip = ["-m", "pip", "install", "--no-input", "--progress-bar", "off", "-r", str(requirements)]
        try:
            clear(partial)  # left by a process that was killed
            _run([sys.executable, "-m", "venv", partial], show)
            _run([partial / "bin" / "python", *pip], show)
            partial.rename(place)
        except (BackendError, OSError) as failed:
            shutil.rmtree(partial, ignore_errors=True)
            message = f"cannot make the environment of {name}: {failed}"
            write_atomic(_failed(place), message.encode())
            raise BackendError(message) from None
        _failed(place).unlink(missing_ok=True)
        ENVIRONMENTS.hold(place.name)
    return place / "bin" / "python"


def remove(name: str) -> None:
    """Delete all environments of the peer, including those of older requirements."""
    worker_file(name)
    for pattern in (f"{name}-*", f".making-{name}-*"):
        for path in ENVIRONMENTS.root.glob(pattern):
            clear(path)


def _place(name: str) -> Path:
    version = ".".join(map(str, sys.version_info[:3]))
    digested = worker_file(name).with_name("requirements.txt").read_bytes() + version.encode()
    return ENVIRONMENTS.root / f"{name}-{hashlib.sha256(digested).hexdigest()[:12]}"


def _failed(place: Path) -> Path:
    return place.with_name(f"{place.name}.failed")


def _run(command: Sequence[str | Path], show: Callable[[str], None]) -> None:
    """Run a command to its end. Raises `BackendError` with the line that explains a failure."""
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    # A build uses the cores that we may use, not all of the machine.
    environment.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(len(os.sched_getaffinity(0))))
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    lines: list[str] = []
    with subprocess.Popen(command, env=environment, text=True, errors="replace", **pipes) as running:  # type: ignore[call-overload]
        for line in running.stdout:
            lines.append(line.rstrip())
            show(lines[-1])
    if running.returncode:
        raise BackendError(reason_of(lines) or f"{Path(command[0]).name} ended with status {running.returncode}.")


def reason_of(lines: Sequence[str]) -> str:
    """Return the most useful line of a failed installation, or ""."""
    text = "\n".join(lines)
    match = next((match for clue in _CLUES if (match := re.search(clue, text))), None)
    if match is None:
        return ""
    building = re.search(_BUILDING, text)
    return match.group()[:300].rstrip(". ") + (f", in building {building.group(1)}." if building else ".")
