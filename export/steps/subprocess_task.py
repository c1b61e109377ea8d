"""Work in a child process: its memory ends with it, and a crash in a builder is an error, not our end.

`run_in_subprocess("module:function", ...)` runs a function of plain-data arguments in a fresh interpreter and gives its
plain-data result. Errors of ours come back as themselves; anything else, a crash included, is a `BuildError`. What the
function says on the way (`say`) is heard while it works. Knows nothing of what the functions do.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calotype import errors
from calotype.errors import BuildError

Tell = Callable[[str], None]

_POLITE_S = 5.0  # that a child has to end by itself, once nobody listens: a builder has temporary files of its own
_tell: Tell | None = None  # in a child


def say(text: str) -> bool:
    """From inside a child, a line to the parent. False where it listens no more: the work is to end."""
    try:
        if _tell is not None:
            _tell(text)
    except BrokenPipeError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a child gave, and the most memory it held."""

    value: Any
    peak_bytes: int


def run_in_subprocess(what: str, function: str, tell: Tell | None = None, /, **arguments: Any) -> Outcome:
    """Run `function` ("calotype.export.onnx.trace:trace_component") on JSON-able arguments; `what` names it in errors.

    `tell` hears what it says. Whatever ends the waiting (Ctrl-C, or `tell` raises) ends the child as well.
    """
    with tempfile.TemporaryDirectory(prefix="calotype-") as scratch, tempfile.TemporaryFile() as told:
        answer = Path(scratch) / "answer.json"
        heard, saying = os.pipe()
        job = {"function": function, "arguments": arguments, "answer": str(answer), "parent": os.getpid()}
        child = subprocess.Popen(
            [sys.executable, "-c", "from calotype.export.steps.subprocess_task import main; main()"],
            stdin=subprocess.PIPE,
            stdout=told,
            stderr=told,
            pass_fds=(saying,),
            start_new_session=True,  # Ctrl-C comes to us alone, and we end the child
        )
        os.close(saying)
        try:
            with os.fdopen(heard, encoding="utf-8") as lines:
                _give(child, {**job, "saying": saying})
                for line in lines:  # until the child ends
                    if tell:
                        tell(line.rstrip("\n"))
            child.wait()
        except BaseException:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_POLITE_S if tell else 0)
            child.kill()
            child.wait()
            raise
        told.seek(0)
        return _outcome(what, child.returncode, answer, told.read().decode("utf-8", "replace"))


def _give(child: subprocess.Popen[bytes], job: dict[str, Any]) -> None:
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError), child.stdin as there:
        there.write(json.dumps(job, default=str).encode())


def _outcome(what: str, code: int, answer: Path, told: str) -> Outcome:
    try:
        data = json.loads(answer.read_text())
    except (OSError, ValueError):
        last = (told.strip().splitlines() or ["it said nothing"])[-1][:300]
        raise BuildError(f"{what} died ({_death(code)}): {last}") from None
    if "error" in data:
        kind = getattr(errors, data["kind"], BuildError)
        raise kind(data["error"] if kind is not BuildError else f"{what} failed: {data['error']}")
    return Outcome(value=data["value"], peak_bytes=data["peak_bytes"])


def _death(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
    return f"{name}, most often for lack of memory" if -code == signal.SIGKILL else name


def _die_with(parent: int) -> None:
    """Linux ends this process with its parent, even one that was killed; elsewhere it goes on to its own end."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def _peak_bytes() -> int:
    """The most memory that this program held. `ru_maxrss` would count the parent's, from before exec."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _run(job: dict[str, Any]) -> dict[str, Any]:
    import importlib

    module, name = job["function"].split(":")
    try:
        value = getattr(importlib.import_module(module), name)(**job["arguments"])
    except errors.CalotypeError as failed:
        return {"error": str(failed), "kind": type(failed).__name__}
    except OSError as failed:  # a full disk, foremost
        return {"error": f"{failed.filename or 'a file'}: {failed.strerror or failed}", "kind": "BuildError"}
    except MemoryError:
        return {"error": "the memory is used up", "kind": "BuildError"}
    return {"value": value, "peak_bytes": _peak_bytes()}


def _write(pipe: int, text: str) -> None:
    os.write(pipe, f"{text}\n".encode())  # a line at once, from whichever thread


def main() -> None:
    """The child's side: a job on stdin, the answer into a file."""
    global _tell
    job = json.loads(sys.stdin.read())
    _die_with(job["parent"])
    os.set_inheritable(job["saying"], False)  # processes that it starts would keep the parent listening
    _tell = lambda text: _write(job["saying"], text)  # noqa: E731
    answer = Path(job["answer"])
    fresh = answer.with_suffix(".part")
    fresh.write_text(json.dumps(_run(job), default=str))
    fresh.rename(answer)
