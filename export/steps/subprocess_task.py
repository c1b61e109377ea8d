"""Run a function in a child process: its memory is freed at its end, and a crash in a builder becomes an error.

`run_in_subprocess(task, "module:function", ...)` runs a function with plain-data arguments in a fresh interpreter and
returns its plain-data result. A `CalotypeError` of the child is raised again in the parent; any other failure, a crash
included, is a `BuildError`. Lines that the function passes to `report_progress` arrive while it works.
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
from calotype.system.memory import proc_bytes

ProgressHandler = Callable[[str], None]

_GRACE_S = 5.0  # for a child to end by itself once the parent stops reading: builders remove their temporary files
_send: ProgressHandler | None = None  # set in a child


def report_progress(text: str) -> bool:
    """Send a line from a child to its parent. Return False if the parent stopped reading: the work should end."""
    try:
        if _send is not None:
            _send(text)
    except BrokenPipeError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a child, and its peak memory."""

    value: Any
    peak_bytes: int

    @property
    def notes(self) -> dict[str, Any]:
        """A result that is a dict or None, with the peak memory."""
        return {**(self.value or {}), "peak_bytes": self.peak_bytes}


def run_in_subprocess(
    task: str, function: str, on_progress: ProgressHandler | None = None, /, **arguments: Any
) -> Outcome:
    """Run `function` in a child process.

    Args:
        task: what the function does, for errors: "tracing the unet".
        function: "module:function", such as "calotype.export.onnx.trace:trace_component".
        on_progress: receives each line of `report_progress`. If it raises, or on Ctrl-C, the child is ended as well.
        arguments: keyword arguments of the function, which JSON can hold.

    Raises:
        CalotypeError: the child raised it.
        BuildError: the child failed in another way, or died.
    """
    with tempfile.TemporaryDirectory(prefix="calotype-") as scratch, tempfile.TemporaryFile() as log:
        answer = Path(scratch) / "answer.json"
        reader, writer = os.pipe()
        job = {"function": function, "arguments": arguments, "answer": str(answer), "parent": os.getpid()}
        child = subprocess.Popen(
            [sys.executable, "-c", "from calotype.export.steps.subprocess_task import main; main()"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=(writer,),
            start_new_session=True,  # Ctrl-C reaches only the parent, which ends the child
        )
        os.close(writer)
        try:
            with os.fdopen(reader, encoding="utf-8") as lines:
                assert child.stdin is not None
                with contextlib.suppress(BrokenPipeError), child.stdin as pipe:
                    pipe.write(json.dumps({**job, "progress": writer}, default=str).encode())
                for line in lines:  # until the child ends
                    if on_progress:
                        on_progress(line.rstrip("\n"))
            child.wait()
        except BaseException:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_GRACE_S if on_progress else 0)
            child.kill()
            child.wait()
            raise
        log.seek(0)
        return _outcome(task, child.returncode, answer, log.read().decode("utf-8", "replace"))


def _outcome(task: str, code: int, answer: Path, log: str) -> Outcome:
    try:
        data = json.loads(answer.read_text())
    except (OSError, ValueError):
        last = (log.strip().splitlines() or ["it printed nothing"])[-1][:300]
        reason = f"exit code {code}" if code >= 0 else f"signal {-code}"
        if -code in signal.valid_signals():
            reason = signal.Signals(-code).name
        reason += ", most often out of memory" if -code == signal.SIGKILL else ""
        raise BuildError(f"{task} died ({reason}): {last}") from None
    if "error" in data:
        kind = getattr(errors, data["kind"], BuildError)
        message = data["error"] if kind is not BuildError else f"{task} failed: {data['error']}"
        raise kind(message, **data.get("data", {}))
    return Outcome(value=data["value"], peak_bytes=data["peak_bytes"])


def _die_with(parent: int) -> None:
    """Make Linux end this process with its parent, even if the parent is killed. Other systems let it finish."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def _peak_bytes() -> int:
    """Return the peak memory of this program. `ru_maxrss` would count the parent's, from before exec."""
    if (peak := proc_bytes(Path("/proc/self/status"), "VmHWM")) is not None:
        return peak
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _run(job: dict[str, Any]) -> dict[str, Any]:
    import importlib

    module, name = job["function"].split(":")
    try:
        value = getattr(importlib.import_module(module), name)(**job["arguments"])
    except errors.CalotypeError as failed:
        return {"error": str(failed), "kind": type(failed).__name__, "data": failed.data}
    except OSError as failed:  # most often a full disk
        return {"error": f"{failed.filename or 'a file'}: {failed.strerror or failed}", "kind": "BuildError"}
    except MemoryError:
        return {"error": "out of memory", "kind": "BuildError"}
    return {"value": value, "peak_bytes": _peak_bytes()}


def main() -> None:
    """Run in the child: read a job from stdin, and write the answer into its file."""
    global _send
    job = json.loads(sys.stdin.read())
    _die_with(job["parent"])
    os.set_inheritable(job["progress"], False)  # processes that it starts would keep the pipe open

    def send(text: str) -> None:
        os.write(job["progress"], f"{text}\n".encode())  # one call per line, because several threads may write

    _send = send
    answer = Path(job["answer"])
    fresh = answer.with_suffix(".part")
    fresh.write_text(json.dumps(_run(job), default=str))
    fresh.rename(answer)
