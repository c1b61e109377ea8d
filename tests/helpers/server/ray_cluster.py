"""A local cluster of Ray with two cores: no dashboard, no network beyond loopback, no reports of usage."""

import contextlib
import os
import signal
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def local_cluster() -> Iterator[None]:
    """Start a cluster, and stop all its processes at the end."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    import ray
    from ray import serve

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's own files and sockets
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        try:
            yield
        finally:
            serve.shutdown()
            ray.shutdown()


def processes_of(title: str) -> set[int]:
    """Return the processes below this one whose title starts with `title`, such as "ray::ServeReplica:app:Worker"."""
    pids = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_text().startswith(title):
                pids.add(int(folder.name))
    return pids


def kill(pids: set[int]) -> None:
    """End processes as the kernel does where memory is short."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def wait_until(condition: Callable[[], object], limit_s: float = 60) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


def free_port() -> int:
    """Return a port of loopback that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
