"""`RemoteEngine`: an `Engine` whose jobs run in workers. It holds no weights.

It picks a job's seed when it takes the job. A worker that dies loses nothing: another runs the job from its start, with
the same seed, so the image is the same. Clients see no step again that they have seen.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextvars import Context
from dataclasses import replace
from typing import Any

from ray.exceptions import ObjectLostError, RayActorError, TaskCancelledError
from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError

from ...errors import BackendError, CalotypeError, Cancelled, DeadlineError, QueueFullError, first_line
from ..command.config import ServeConfig
from ..job import Job, JobRequest, JobStatus
from ..observer import EngineStats, Observer
from ..settings import EngineSettings
from .front import front_of

_WORKER_LOST = (
    *(RayActorError, ObjectLostError, TaskCancelledError),
    *(DeploymentUnavailableError, ReplicaUnavailableError),
)


class RemoteEngine:
    """Takes jobs as `Engine` does, and has workers run them. Threads may share it."""

    settings: EngineSettings
    is_local = False  # a warm-up would start a worker

    def __init__(self, workers: Any, config: ServeConfig) -> None:
        """Start the thread that follows the jobs.

        Args:
            workers: The handle of the deployment of `Worker`.
            config: The models, and the limits.
        """
        self.settings, self.catalog = config, front_of(config)
        self._workers, self._attempts = workers, config.attempts
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._guard = threading.Lock()
        self._closing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="calotype-ray", daemon=True)
        self._thread.start()

    def submit(self, request: JobRequest) -> Job:
        """Take a job.

        Raises:
            QueueFullError: Too many jobs wait, or the engine is closing.
            InputError: An argument is invalid, or there is no such model or LoRA.
            SamplerError: The scheduler is unknown, or cannot run with this number of steps.
        """
        name = self.catalog.check_name(request.model)
        self.catalog.lora_files(request.loras or ())
        prompt, _ = self.catalog.without_tags(request.prompt)
        self.catalog.open(name).stream(prompt, **request.arguments)  # checks the arguments, and does no work
        job = Job(replace(request, model=name, arguments=_with_seed(request.arguments)), self._cancel)
        with self._guard:
            waiting = self._waiting()
            if self._closing or len(waiting) >= self.settings.max_waiting:
                raise QueueFullError(
                    f"{len(waiting)} jobs wait, which is the limit. Try again later.",
                    waiting=len(waiting),
                    limit=self.settings.max_waiting,
                    retry_after_s=1.0,
                )
            self._jobs[job.id] = job
            job.update(place=len(waiting) + 1)
        # Without the caller's context: Ray cancels what a request started when that request ends.
        Context().run(self._loop.call_soon_threadsafe, self._start, job)
        return job

    def job(self, job_id: str) -> Job | None:
        """Return a job, or None if there is none of this id, or it ended long ago."""
        return self._jobs.get(job_id)

    def jobs(self) -> tuple[Job, ...]:
        """Return all jobs that are known, the oldest first."""
        with self._guard:
            return tuple(self._jobs.values())

    @property
    def stats(self) -> EngineStats:
        """How many jobs wait and run now. The workers know the batches."""
        states = [job.status.state for job in self.jobs()]
        return EngineStats(waiting=states.count("waiting"), running=states.count("running"), waiting_bytes=0, batches=0)

    def observe(self, observer: Observer) -> None:
        """Do nothing: steps run in the workers."""

    def close(self, drain_s: float = 0.0) -> None:
        """Take no more jobs, wait up to `drain_s` seconds for those that were taken, and end the rest."""
        with self._guard:
            self._closing = True
        deadline = time.monotonic() + drain_s
        for job in self.jobs():
            while not job.status.is_final and time.monotonic() < deadline:
                time.sleep(0.01)
            job.cancel()
        while self._tasks:
            time.sleep(0.01)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _waiting(self) -> list[Job]:
        return [job for job in self._jobs.values() if job.status.state == "waiting"]

    def _cancel(self, job: Job) -> None:
        job.stop.set()
        self._loop.call_soon_threadsafe(self._stop, job)

    def _stop(self, job: Job) -> None:
        if task := self._tasks.get(job.id):
            task.cancel()
            message = f"cancelled after {job.status.step} steps."
            job.update(state="cancelled", error=Cancelled(message, step=job.status.step))

    def _start(self, job: Job) -> None:
        self._tasks[job.id] = task = self._loop.create_task(self._run(job))
        task.add_done_callback(lambda _: self._end(job))

    def _end(self, job: Job) -> None:
        del self._tasks[job.id]
        self._settle()

    async def _run(self, job: Job) -> None:
        try:
            async with asyncio.timeout(job.request.timeout_s):
                await self._follow(job)
        except TimeoutError:
            message = f"the job did not end within {job.request.timeout_s:g} s."
            job.update(state="failed", error=DeadlineError(message, step=job.status.step))
        except Exception as failed:
            job.update(state="failed", error=CalotypeError(f"internal error: {first_line(failed)}"))

    async def _follow(self, job: Job) -> None:
        """Run a job until it ends, again after each worker that dies."""
        for attempt in range(self._attempts):
            try:
                async for status in self._attempt(job):
                    self._show(job, status)
                return
            except (*_WORKER_LOST, asyncio.CancelledError) as lost:
                if _is_cancelled():  # by the client or the deadline, and not by a worker that stops
                    raise asyncio.CancelledError from None
                if attempt + 1 == self._attempts:
                    message = f"the worker of this job died {self._attempts} times: {first_line(lost)}"
                    job.update(state="failed", error=BackendError(message))

    async def _attempt(self, job: Job) -> AsyncIterator[JobStatus]:
        request = job.request
        if request.timeout_s is not None:
            request = replace(request, timeout_s=max(0.0, job.arrival + request.timeout_s - time.monotonic()))
        handle = self._workers.options(stream=True, multiplexed_model_id=request.model)
        statuses = handle.run.remote(request)
        try:
            async for status in statuses:
                yield status
        finally:
            statuses.cancel()

    def _show(self, job: Job, status: JobStatus) -> None:
        """Show a worker's status, unless the client has seen a later one of a worker that died."""
        before = job.status
        if status.state == "waiting" or (not status.is_final and status.step < before.step):
            return
        changes = {name: value for name, value in vars(status).items() if name != "version"}
        if status.preview_step < before.preview_step:
            del changes["preview"], changes["preview_step"]
        job.update(**changes)
        if before.state == "waiting":
            self._settle()

    def _settle(self) -> None:
        """Count the places of the jobs that wait, and forget old jobs that ended."""
        with self._guard:
            for place, waiting in enumerate(self._waiting(), start=1):
                if waiting.status.place != place:
                    waiting.update(place=place)
            ended = [job for job in self._jobs.values() if job.status.is_final]
            for job in ended[: max(0, len(ended) - self.settings.kept_jobs)]:
                del self._jobs[job.id]


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _with_seed(arguments: Any) -> dict[str, Any]:
    """Return the arguments with a seed: every worker that runs them generates the same images."""
    chosen = arguments.get("seed") is not None or arguments.get("generator") is not None
    return dict(arguments) if chosen else {**arguments, "seed": secrets.randbelow(2**32)}
