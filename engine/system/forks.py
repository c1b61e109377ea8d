"""Fork safety: reset locks and objects in a forked child, which does not have the parent's other threads.

Otherwise locks that a thread of the parent held would stay locked forever, and libraries would wait for missing
threads. So locks are `Lock`s, which are free again in a child, and `track` resets other objects. A library's own locks
cannot be reset: a child that was forked while another thread was `running` raises.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from ..errors import BackendError

_kept: list[Any] = []
_running: list[int] = []  # the threads inside a library, one entry for each level
_torch_single_threaded = _torn = False


class Forkable(Protocol):
    """An object that `track` takes."""

    def after_fork(self) -> None:
        """Reset the object in the child process, which has only one thread."""


_tracked: weakref.WeakSet[Any] = weakref.WeakSet()


def track(thing: Forkable) -> None:
    """Call `thing.after_fork` in each child that this process forks, as long as the object lives."""
    _tracked.add(thing)


def keep(thing: Any) -> None:
    """Never delete this object of the parent, because its library would wait for its threads."""
    _kept.append(thing)


def torch_single_threaded() -> bool:
    """Return whether PyTorch must use one thread: after a fork it would wait for the parent's thread pool."""
    return _torch_single_threaded


@contextmanager
def running() -> Iterator[None]:
    """Mark that this thread uses libraries. Raises as `check` does."""
    check()
    thread = threading.get_ident()
    _running.append(thread)
    try:
        yield
    finally:
        if thread in _running:  # a child that was forked inside has no entry
            _running.remove(thread)


def check() -> None:
    """Raise `BackendError` in a child that was forked while another thread of the parent used libraries."""
    if _torn:
        raise BackendError(
            "this process was forked while another thread generated images, so libraries' locks may stay locked; "
            "start processes with multiprocessing.get_context('spawn'), or fork before the first image."
        )


class Lock:
    """A lock that is free in a forked child, even if a thread of the parent held it."""

    def __init__(self, kind: Callable[[], AbstractContextManager[Any]] = threading.Lock) -> None:
        self._kind = kind
        self.after_fork()
        track(self)

    def after_fork(self) -> None:
        """Replace the lock by a free one."""
        self._lock = self._kind()

    def __enter__(self) -> None:
        self._lock.__enter__()

    def __exit__(self, *failure: Any) -> None:
        self._lock.__exit__(*failure)


def _run_in_subprocess() -> None:
    global _torch_single_threaded, _torn
    _torn = _torn or any(thread != threading.get_ident() for thread in _running)
    _running.clear()
    torch = sys.modules.get("torch")
    if torch is not None:
        _torch_single_threaded = True
        torch.set_num_threads(1)
    for thing in list(_tracked):
        thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_run_in_subprocess)
