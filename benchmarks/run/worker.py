"""The parent's side of a worker process: start it in an environment, send JSON lines, and end it in every case.

Every failure of the process (it dies, hangs, prints nonsense) is a `WorkerError` with one sentence. This module knows
neither cases nor times. `peers/serve.py` describes the protocol.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calotype.errors import CalotypeError

SERVE = Path(__file__).resolve().parent.parent / "peers" / "serve.py"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LOG_BYTES = 2000  # of stderr, searched for the last line of a dead worker


class WorkerError(CalotypeError):
    """A worker failed to answer a request."""


class UnsupportedCase(WorkerError):
    """The worker reports that it cannot run the case. The message is its reason."""


class Worker:
    """One process. Use it as a context manager, or `close` it."""

    def __init__(self, python: Path, file: Path, *, threads: int) -> None:
        """Start `file`'s `Peer` in the interpreter `python`, on `threads` of the available cores."""
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._rest = b""
        self._process = subprocess.Popen(
            [python, SERVE, file],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=_environment(threads),
            start_new_session=True,  # only this process gets Ctrl-C, and it ends the worker
            preexec_fn=_on(_cores(threads)),
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send a request and return the answer. Raises `WorkerError`, or `UnsupportedCase` if the worker declines."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write((json.dumps(request) + "\n").encode())
            self._process.stdin.flush()
        except (BrokenPipeError, OSError):
            raise WorkerError(self._died()) from None
        answer = self._answer(request["op"], timeout_s)
        if answer.get("ok"):
            return answer
        if "cannot" in answer:
            raise UnsupportedCase(str(answer["cannot"]))
        raise WorkerError(f"it failed to {request['op']}: {answer.get('error', 'no reason given')}")

    def close(self) -> None:
        """End the process and everything that it started."""
        with contextlib.suppress(OSError, ValueError, subprocess.TimeoutExpired):
            assert self._process.stdin is not None
            self._process.stdin.write(b'{"op": "quit"}\n')
            self._process.stdin.close()
            self._process.wait(timeout=5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.close()  # type: ignore[union-attr]

    def _answer(self, op: str, timeout_s: float) -> dict[str, Any]:
        line = self._line(op, time.monotonic() + timeout_s, timeout_s)
        try:
            answer = json.loads(line)
        except ValueError:
            raise WorkerError(f"it answered {line[:100]!r}, expected JSON") from None
        if not isinstance(answer, dict):
            raise WorkerError(f"it answered {line[:100]!r}, expected a JSON object")
        return answer

    def _line(self, op: str, until: float, timeout_s: float) -> bytes:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                left = until - time.monotonic()
                if left <= 0 or not selector.select(left):
                    self.close()
                    raise WorkerError(f"it did not {op} within {timeout_s:g} s, and its process was ended")
                got = os.read(self._process.stdout.fileno(), 1 << 16)
                if not got:
                    raise WorkerError(self._died())
                self._rest += got
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _died(self) -> str:
        code = self._process.wait()
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, self._stderr.tell() - _LOG_BYTES))
        words = [w.strip() for w in self._stderr.read().decode("utf-8", "replace").splitlines() if w.strip()]
        last = words[-1][:300] if words else "no output"
        if code == -signal.SIGKILL:
            return "its process was killed, probably because memory ran out"
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"its process ended ({how}): {last}"


def _cores(threads: int) -> Sequence[int]:
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[:threads] if threads < len(allowed) else allowed


def _on(cores: Sequence[int]) -> Any:
    """Limit the process to these cores, for libraries that count cores, and let it end when the parent is killed."""

    def pin() -> None:
        os.sched_setaffinity(0, cores)
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return pin


def _environment(threads: int) -> dict[str, str]:
    """Return the same environment for every worker: the threads, no network, no telemetry, no foreign packages."""
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {
        **{name: value for name, value in os.environ.items() if name not in ours},
        **dict.fromkeys(counts, str(threads)),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
