"""`Engine`: takes jobs from many clients, and runs them on one device with one thread.

Jobs that have a slot share calls of the U-Net: before each step the engine takes the job that ranks first, and others
whose call can run together with it. So a job joins at the next step, and leaves when it ends, fails or is cancelled.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress

from ..errors import CalotypeError, Cancelled, QueueFullError
from ..pipeline import Pipeline
from .batcher import Batcher, plain_error
from .catalog import Loader, ModelCatalog
from .costs import Costs
from .job import Job, JobRequest
from .observer import EngineStats, Observer
from .settings import EngineSettings
from .ticket import Ticket


class Engine:
    """The owner of the models and of the loop that runs jobs. Threads may share it."""

    is_local = True  # the models run in this process

    def __init__(
        self,
        models: ModelCatalog | Pipeline | Mapping[str, Pipeline | Loader],
        settings: EngineSettings | None = None,
        observer: Observer | None = None,
    ) -> None:
        """Start the loop.

        Args:
            models: A catalog, one pipeline, or pipelines and functions that load them, by name.
            settings: Limits and policy.
            observer: Its methods are called after each step; `observe` replaces it.
        """
        named = {"default": models} if isinstance(models, Pipeline) else models
        self.catalog = named if isinstance(named, ModelCatalog) else ModelCatalog(named)
        self.settings = settings or EngineSettings()
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._waiting: list[Ticket] = []  # in the order of their ranks
        self._costs = Costs()
        self._batcher = Batcher(self.catalog, self.settings, self._costs, observer or Observer())
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="calotype-engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a library must not run while the interpreter ends

    def observe(self, observer: Observer) -> None:
        """Call this observer after each step from now on."""
        self._batcher.observer = observer

    def submit(self, request: JobRequest) -> Job:
        """Take a job.

        Raises:
            QueueFullError: Too many jobs wait, or the engine is closing.
            InputError: There is no such model or LoRA, or an argument is invalid. If the model is not open yet, its
                arguments are checked later, and the job fails.
            SamplerError: The scheduler is unknown, or cannot run with this number of steps.
        """
        name = self.catalog.check_name(request.model)
        ticket = Ticket(Job(request, self._cancel), name, self.catalog, self._costs)
        self._check_room(ticket.image_bytes)
        self.catalog.hold(name)  # until the job ends
        try:
            pipe = self.catalog.loaded(name)
            if pipe is not None:
                ticket.check(pipe)
            with self._wake:
                self._check_room(ticket.image_bytes)
                self._jobs[ticket.job.id] = ticket.job
                self._waiting.append(ticket)
                self._order()
                self._wake.notify_all()
        except BaseException:
            self.catalog.release(name)
            raise
        if pipe is None:
            self.catalog.open_later(name, self._opened)
        return ticket.job

    def job(self, job_id: str) -> Job | None:
        """Return a job, or None if there is none of this id, or it ended long ago."""
        return self._jobs.get(job_id)

    def jobs(self) -> tuple[Job, ...]:
        """Return all jobs that are known, the oldest first."""
        with self._wake:
            return tuple(self._jobs.values())

    @property
    def stats(self) -> EngineStats:
        """How many jobs wait and run now."""
        with self._wake:
            return EngineStats(
                waiting=len(self._waiting),
                running=len(self._batcher.running),
                waiting_bytes=sum(ticket.image_bytes for ticket in self._waiting),
                batches=self._batcher.images,
            )

    def close(self, drain_s: float = 0.0) -> None:
        """Take no more jobs, wait up to `drain_s` seconds for those that were taken, and end the rest."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        deadline = time.monotonic() + drain_s
        for job in self.jobs():
            with suppress(CalotypeError, TimeoutError):
                job.result(max(0.0, deadline - time.monotonic()))
            job.cancel()
        self._thread.join()
        atexit.unregister(self.close)

    def _check_room(self, image_bytes: int) -> None:
        settings, waiting = self.settings, len(self._waiting)
        size = image_bytes + sum(ticket.image_bytes for ticket in self._waiting)
        if self._closing or waiting >= settings.max_waiting or size > settings.max_waiting_bytes:
            reason = "the server is closing" if self._closing else f"{waiting} jobs wait, and there is no more room"
            raise QueueFullError(
                f"{reason}. Try again later.",
                waiting=waiting,
                limit=settings.max_waiting,
                retry_after_s=max(1.0, self._batcher.left_s() + sum(ticket.work_s for ticket in self._waiting) / 2),
            )

    def _opened(self, name: str, opened: Pipeline | CalotypeError) -> None:
        """Check the jobs that waited for a model; in the thread that opened it."""
        with self._wake:
            waiting = [ticket for ticket in self._waiting if ticket.model == name and ticket.call is None]
        for ticket in waiting:
            try:
                if isinstance(opened, CalotypeError):
                    raise opened
                ticket.check(opened)
            except Exception as failed:
                self._leave(ticket, plain_error(failed))
        with self._wake:
            self._order()
            self._wake.notify_all()

    def _cancel(self, job: Job) -> None:
        job.stop.set()
        with self._wake:
            waiting = next((ticket for ticket in self._waiting if ticket.job is job), None)
            self._wake.notify_all()
        if waiting is not None:
            self._leave(waiting, Cancelled("cancelled before its first step.", step=0))

    def _leave(self, ticket: Ticket, error: CalotypeError) -> None:
        """End a job that waits, unless it has started meanwhile."""
        with self._wake:
            if ticket not in self._waiting:
                return
            self._waiting.remove(ticket)
            self._order()
        ticket.end(error)
        self.catalog.release(ticket.model)

    def _order(self) -> None:
        """Sort the jobs that wait, and tell each its place and when it may end. The caller holds the lock."""
        self._waiting.sort(key=lambda ticket: ticket.rank)
        ahead_s = self._batcher.left_s()
        for place, ticket in enumerate(self._waiting, 1):
            ahead_s += ticket.work_s
            eta_s = round(ahead_s, 1) if ticket.call is not None else None
            if (ticket.job.status.place, ticket.job.status.eta_s) != (place, eta_s):
                ticket.job.update(place=place, eta_s=eta_s)

    def _run(self) -> None:
        while True:
            with self._wake:
                ready = self._batcher.running or any(ticket.is_ready for ticket in self._waiting)
                if not ready:
                    if self._closing and not self._waiting:
                        return
                    self._wake.wait(self._until_deadline())
                late = [ticket for ticket in self._waiting if ticket.is_late()]
                starting = self._batcher.choose_new([ticket for ticket in self._waiting if not ticket.is_late()])
                for ticket in starting:
                    self._waiting.remove(ticket)
                if starting:
                    self._order()
            for ticket in late:
                self._leave(ticket, ticket.late_error())
            try:
                for ticket in starting:
                    self._batcher.start(ticket)
                ended = self._batcher.step()
            except Exception as failed:  # an error of the loop itself must not leave clients waiting
                self._batcher.end_all(plain_error(failed))
                ended = True
            if ended:
                self._forget_old()

    def _until_deadline(self) -> float | None:
        """Return the seconds until the next job that waits is late; None for no such job."""
        times = [ticket.deadline for ticket in self._waiting if ticket.deadline is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _forget_old(self) -> None:
        with self._wake:
            kept, kept_bytes = 0, 0
            for job in [job for job in reversed(self._jobs.values()) if job.status.is_final]:
                kept, kept_bytes = kept + 1, kept_bytes + job.status.result_bytes
                if kept > self.settings.kept_jobs or kept_bytes > self.settings.kept_bytes:
                    del self._jobs[job.id]
