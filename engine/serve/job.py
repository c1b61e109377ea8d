"""A job: a request that was submitted, and what its clients may know of it.

A client reads statuses, each of which replaces the one before. A slow client misses some and never delays the work.
"""

from __future__ import annotations

import asyncio
import copy
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..errors import CalotypeError
from ..images.png import GeneratedImage
from ..report.result import Result

State = Literal["waiting", "running", "done", "failed", "cancelled"]
FINAL: tuple[State, ...] = ("done", "failed", "cancelled")


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """What a client asks of the engine.

    Attributes:
        prompt: The prompt, or a list, as in a call of a pipeline.
        arguments: The other arguments of that call.
        model: A name in the catalog; None is its first model.
        loras: Names of LoRAs in the catalog with their weights. They replace those that the model was loaded with.
        priority: Jobs of a higher priority run first.
        timeout_s: Seconds from the submission after which the job ends with `DeadlineError`; None is no limit.
        preview_every: Decode a preview after each of this many steps; 0 decodes none.
        owner: Whose job it is: a client only sees and ends its own.
        id: The job's id; None draws one that cannot be guessed.
    """

    prompt: Any = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    loras: tuple[tuple[str, float], ...] | None = None
    priority: int = 0
    timeout_s: float | None = None
    preview_every: int = 0
    owner: str = ""
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """A job at one moment.

    Attributes:
        version: Counts the changes.
        state: "waiting", "running", or one of the final states "done", "failed" and "cancelled".
        place: The number of jobs that start before this one; 0 once it runs.
        step: The steps that ended.
        total: All steps; 0 until the engine has checked the arguments.
        eta_s: Seconds until the end, estimated; None while nothing is known.
        preview: The images as the last previewed step predicts them; empty without one.
        preview_step: That step; 0 without one.
        error: Why the job failed or was cancelled.
        result: The images and the report, once the job is done.
    """

    version: int = 0
    state: State = "waiting"
    place: int = 0
    step: int = 0
    total: int = 0
    eta_s: float | None = None
    preview: tuple[GeneratedImage, ...] = ()
    preview_step: int = 0
    error: CalotypeError | None = None
    result: Result | None = None

    @property
    def result_bytes(self) -> int:
        """The size of the result's images."""
        images = [] if self.result is None else self.result.images
        return int(images.nbytes) if hasattr(images, "nbytes") else sum(3 * each.width * each.height for each in images)

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return self.state in FINAL


class Job:
    """A submitted request. Threads may share it."""

    def __init__(self, request: JobRequest, cancel: Callable[[Job], None]) -> None:
        self.request = request
        self.id = request.id or secrets.token_urlsafe(18)
        self.submitted_at = time.time()  # Unix time
        self.arrival = time.monotonic()
        self.stop = threading.Event()  # set when nobody wants the result any more
        self._cancel = cancel
        self._status = JobStatus()
        self._changed = threading.Condition()
        self._listeners: set[Callable[[], None]] = set()

    @property
    def status(self) -> JobStatus:
        """The job now."""
        return self._status

    def cancel(self) -> None:
        """End the job: at once if it waits, at its next step if it runs. Does nothing once it has ended."""
        self._cancel(self)

    def result(self, timeout_s: float | None = None) -> Result:
        """Wait for the end and return the result.

        Raises:
            CalotypeError: Why the job failed; `Cancelled` if it was cancelled.
            TimeoutError: The job has not ended within `timeout_s`.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._status.is_final, timeout_s):
                raise TimeoutError(f"job {self.id} has not ended within {timeout_s} s.")
        if self._status.error is not None:
            raise copy.copy(self._status.error)  # each raise adds frames to an error, which hold what they use
        assert self._status.result is not None
        return self._status.result

    async def updates(self) -> AsyncIterator[JobStatus]:
        """Yield the status now and after changes, until the job has ended. Skips what a slow reader missed."""
        loop, changed, seen = asyncio.get_running_loop(), asyncio.Event(), -1

        def listen() -> None:
            with suppress(RuntimeError):  # the reader's event loop was closed
                loop.call_soon_threadsafe(changed.set)

        with self._changed:
            self._listeners.add(listen)
        try:
            while True:
                changed.clear()
                status = self._status
                if status.version != seen:  # the listener may be late, for a status that was read already
                    seen = status.version
                    yield status
                if status.is_final:
                    return
                if self._status.version == status.version:
                    await changed.wait()
        finally:
            with self._changed:
                self._listeners.discard(listen)

    def update(self, **changes: Any) -> None:
        """Change the status. A job that has ended stays as it is. For the engine."""
        with self._changed:
            if self._status.is_final:
                return
            self._status = replace(self._status, version=self._status.version + 1, **changes)
            if self._status.is_final:
                self._free()
            self._changed.notify_all()
            listeners = tuple(self._listeners)
        for listen in listeners:
            listen()

    def _free(self) -> None:
        """Drop what an ended job needs no more: input images, previews, and the frames that its error holds."""
        self.request = replace(self.request, arguments={})
        error, done = self._status.error, self._status.state == "done"
        preview = () if done else self._status.preview  # a cancelled job may still show it
        self._status = replace(self._status, preview=preview, error=None if error is None else copy.copy(error))
