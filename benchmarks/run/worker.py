"""The parent's side of a worker process: start it in an environment, send JSON lines, and end it in every case.

Every failure of the process (it dies, hangs, prints nonsense) is a `WorkerError` with one sentence. This module knows
neither cases nor times. `peers/serve.py` describes the protocol.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calotype.errors import CalotypeError

SERVE = Path(__file__).resolve().parent.parent / "peers" / "serve.py"
FOREIGN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")  # would mix up the imports of another environment
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LOG_BYTES = 2000  # of stderr, searched for the last line of a dead worker


class WorkerError(CalotypeError):
    """A worker failed to answer a request."""


class UnsupportedCase(WorkerError):
    """The worker reports that it cannot run the case. The message is its reason."""


class Worker:
    """One process. `close` it, or use `contextlib.closing`."""

    def __init__(self, python: Path, file: Path, *, threads: int) -> None:
        """Start `file`'s `Peer` in the interpreter `python`, on `threads` of the available cores."""
        cores = sorted(os.sched_getaffinity(0))[:threads]

        def pin() -> None:
            """Limit libraries that count cores, and end the process when the parent is killed."""
            os.sched_setaffinity(0, cores)
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._rest = b""
        self._process = subprocess.Popen(
            [python, SERVE, file],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=_environment(threads, python),
            start_new_session=True,  # only this process gets Ctrl-C, and it ends the worker
            preexec_fn=pin,
        )

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send a request and return the answer. Raises `WorkerError`, or `UnsupportedCase` if the worker declines."""
        op = request["op"]
        try:
            self._send(request)
        except OSError:
            raise WorkerError(self._died()) from None
        line = self._line(op, timeout_s)
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise WorkerError(f"it answered {line[:100]!r}, expected a JSON object")
        if "cannot" in answer:
            raise UnsupportedCase(str(answer["cannot"]))
        if not answer.get("ok"):
            raise WorkerError(f"it failed to {op}: {answer.get('error', 'no reason given')}")
        return answer

    def close(self) -> None:
        """End the process and everything that it started."""
        process = self._process
        with contextlib.suppress(OSError, ValueError, subprocess.TimeoutExpired):
            self._send({"op": "quit"})
            process.wait(timeout=5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in filter(None, (process.stdin, process.stdout, self._stderr)):
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def _send(self, request: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write((json.dumps(request) + "\n").encode())
        self._process.stdin.flush()

    def _line(self, op: str, timeout_s: float) -> bytes:
        assert self._process.stdout is not None
        pipe, ends = self._process.stdout.fileno(), time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            if not select.select([pipe], [], [], max(0.0, ends - time.monotonic()))[0]:
                self.close()
                raise WorkerError(f"it did not {op} within {timeout_s:g} s, and its process was ended")
            if not (got := os.read(pipe, 1 << 16)):
                raise WorkerError(self._died())
            self._rest += got
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _died(self) -> str:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return "its process was killed, probably because memory ran out"
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, self._stderr.tell() - _LOG_BYTES))
        lines = self._stderr.read().decode("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"its process ended ({how}): {last[:300]}"


def _environment(threads: int, python: Path) -> dict[str, str]:
    """Return the same environment for every worker: the threads, no network, no telemetry, no foreign packages.

    An interpreter that is ours keeps PYTHONPATH: the packages may be there.
    """
    foreign = FOREIGN if Path(python).absolute() != Path(sys.executable).absolute() else FOREIGN[1:]
    return {
        **{name: value for name, value in os.environ.items() if name not in foreign},
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
