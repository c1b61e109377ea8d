"""`Server`: `python -m calotype serve` in a process of its own, and what the system knows of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

START_S = 300.0  # a first start traces and compiles the model


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a process holds.

    Attributes:
        memory_bytes: Its resident memory.
        threads: Its threads.
        files: Its open files and sockets.
    """

    memory_bytes: int
    threads: int
    files: int


class Server:
    """A running server."""

    def __init__(self, *options: str, log: Path) -> None:
        """Start it. Its log goes to a file.

        Args:
            options: Options of `calotype serve`.
            log: The file.
        """
        self._log = log
        command = [sys.executable, "-P", "-m", "calotype", "serve", "--port", "0", *options]
        with log.open("wb") as stream:
            self.process = subprocess.Popen(command, stdout=stream, stderr=stream)
        try:
            self.address = self._address()
        except BaseException:
            self.kill()
            raise

    def wait_until_ready(self) -> None:
        """Wait for the end of the warm-up. Raises `RuntimeError` with the log's end."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"{self.address}/health/ready", timeout=5).close()
                return
            time.sleep(0.05)
        raise RuntimeError(f"the server is not ready: {self._log.read_text()[-2000:]}")

    def usage(self) -> Usage:
        """Return what the process holds now."""
        folder = Path("/proc", str(self.process.pid))
        lines = (folder / "status").read_text().splitlines()
        status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
        return Usage(
            memory_bytes=int(status["VmRSS"][0]) * 1024,
            threads=int(status["Threads"][0]),
            files=len(os.listdir(folder / "fd")),
        )

    def kill(self) -> None:
        """End the process as the system does where memory is short."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """End the process as a supervisor does, and return its exit code."""
        self.process.terminate()
        return self.process.wait(60)

    def _address(self) -> str:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            for line in self._log.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    if (address := json.loads(line).get("address")) is not None:
                        return str(address)
            time.sleep(0.05)
        raise RuntimeError(f"the server does not listen: {self._log.read_text()[-2000:]}")


@contextlib.contextmanager
def running(*options: str, log: Path) -> Iterator[Server]:
    """Start a server, and end it in every case."""
    server = Server(*options, log=log)
    try:
        server.wait_until_ready()
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()
