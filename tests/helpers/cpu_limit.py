"""A limit of CPU time, so that an endless loop fails. It is far above what a first call takes on a busy machine."""

import signal
from contextlib import contextmanager


@contextmanager
def cpu_limit(seconds: float = 30):
    def expire(number, frame):
        raise AssertionError(f"it took more than {seconds} seconds")

    before = signal.signal(signal.SIGPROF, expire)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
