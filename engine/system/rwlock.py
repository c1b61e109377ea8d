"""Who may be inside: many pictures at once, or one change of the weights that they are painted with."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import InputError
from . import forks


class ReadWriteLock:
    """A change waits for the pictures under way; pictures that come while it waits are painted after it."""

    def __init__(self) -> None:
        self.after_fork()
        forks.track(self)

    def after_fork(self) -> None:
        """Be empty: who was inside is a thread of the parent."""
        self._free = threading.Condition()
        self._painting: Counter[int] = Counter()  # thread -> its pictures under way
        self._changes = 0  # waiting, or being made
        self._changing = False

    @contextmanager
    def picture(self) -> Iterator[None]:
        """For as long as a picture is painted, which may be between two `next`s of a stream, by several threads."""
        thread = threading.get_ident()
        with self._free:
            # Who is inside already must not wait for a change that waits for it.
            self._free.wait_for(lambda: not self._changing and (not self._changes or self._painting[thread]))
            self._painting[thread] += 1
        try:
            yield
        finally:
            with self._free:
                self._painting -= Counter((thread,))  # and forgets it at 0
                self._free.notify_all()

    @contextmanager
    def change(self) -> Iterator[None]:
        """While nothing is painted. Raises `InputError` where this thread itself has begun a picture."""
        with self._free:
            if self._painting[threading.get_ident()]:
                raise InputError(
                    "this thread has a stream under way, painted with the weights as they are; "
                    "finish or close it before they are changed."
                )
            self._changes += 1
            try:
                self._free.wait_for(lambda: not self._changing and not self._painting.total())
                self._changing = True
            except BaseException:  # an interrupt while waiting
                self._leave()
                raise
        try:
            yield
        finally:
            with self._free:
                self._changing = False
                self._leave()

    def _leave(self) -> None:
        self._changes -= 1
        self._free.notify_all()
