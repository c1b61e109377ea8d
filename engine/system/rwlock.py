"""Reader-writer lock for weights: several calls generate images at once, or one call changes the weights."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import InputError
from . import forks


class ReadWriteLock:
    """A writer waits for the current readers. Readers that arrive while it waits run after it."""

    def __init__(self) -> None:
        self.after_fork()
        forks.track(self)

    def after_fork(self) -> None:
        """Reset the lock: its holders are threads of the parent."""
        self._free = threading.Condition()
        self._readers: Counter[int] = Counter()  # thread -> number of its reads
        self._writers = 0  # waiting or writing
        self._writing = False

    @contextmanager
    def read(self) -> Iterator[None]:
        """Hold the lock while generating. It may stay held between two `next`s of a stream, on several threads."""
        thread = threading.get_ident()
        with self._free:
            # A thread that already reads must not wait for a writer that waits for it.
            self._free.wait_for(lambda: not self._writing and (not self._writers or self._readers[thread]))
            self._readers[thread] += 1
        try:
            yield
        finally:
            with self._free:
                self._readers -= Counter((thread,))  # which drops the thread at 0
                self._free.notify_all()

    @contextmanager
    def write(self) -> Iterator[None]:
        """Hold the lock exclusively. Raises `InputError` if this thread reads, for example in an open stream."""
        with self._free:
            if self._readers[threading.get_ident()]:
                raise InputError(
                    "Cannot change the weights: an open stream of this thread uses them. Finish or close it first."
                )
            self._writers += 1
            try:
                self._free.wait_for(lambda: not self._writing and not self._readers.total())
                self._writing = True
            except BaseException:  # an interrupt while waiting
                self._leave()
                raise
        try:
            yield
        finally:
            with self._free:
                self._writing = False
                self._leave()

    def _leave(self) -> None:
        self._writers -= 1
        self._free.notify_all()
