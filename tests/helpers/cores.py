"""The cores of the tests, and their time: a worker of pytest-xdist keeps to one core, and `all_cores` lends it all."""

import os
import signal
from contextlib import contextmanager

CORES = sorted(os.sched_getaffinity(0))  # before a worker keeps to one


def keep_to_one_core(worker: str) -> None:
    """Keep this process, and those that it starts, to one core.

    If two workers use both cores, the threads of one wait for a core that the other has, and most wait busily.
    """
    os.sched_setaffinity(0, {CORES[int(worker.removeprefix("gw")) % len(CORES)]})


@contextmanager
def all_cores():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, CORES)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def cpu_limit(seconds: float = 30):
    """Fail an endless loop. The limit of CPU time is far above what a first call takes on a busy machine."""

    def expire(number, frame):
        raise AssertionError(f"it took more than {seconds} seconds")

    before = signal.signal(signal.SIGPROF, expire)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
