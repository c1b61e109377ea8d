"""`Engine`: takes jobs from many clients and runs them on one device. This version runs one job after another."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping

from ..errors import CalotypeError, Cancelled, DeadlineError, QueueFullError, first_line
from ..pipeline import Pipeline
from .catalog import Loader, ModelCatalog
from .job import Job, JobRequest
from .settings import EngineSettings


class Engine:
    """The owner of the models and of the loop that runs jobs. Threads may share it."""

    def __init__(
        self,
        models: ModelCatalog | Pipeline | Mapping[str, Pipeline | Loader],
        settings: EngineSettings | None = None,
    ) -> None:
        """Start the loop.

        Args:
            models: A catalog, one pipeline, or pipelines and functions that load them, by name.
            settings: Limits and policy.
        """
        named = {"default": models} if isinstance(models, Pipeline) else models
        self.catalog = named if isinstance(named, ModelCatalog) else ModelCatalog(named)
        self.settings = settings or EngineSettings()
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._waiting: list[Job] = []
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="calotype-engine", daemon=True)
        self._thread.start()

    def submit(self, request: JobRequest) -> Job:
        """Take a job.

        Raises:
            QueueFullError: Too many jobs wait, or the engine is closing.
            InputError: An argument is invalid. If the model is not open yet, the job fails later instead.
            SamplerError: The scheduler is unknown, or cannot run with this number of steps.
        """
        name = self.catalog.check_name(request.model)
        self.catalog.lora_files(request.loras or ())
        pipe = self.catalog.loaded(name)
        if pipe is not None:
            pipe.stream(request.prompt, **request.arguments)  # checks the arguments, and does no work
        job = Job(request, self._cancel)
        with self._wake:
            if self._closing or len(self._waiting) >= self.settings.max_waiting:
                raise QueueFullError(
                    f"{len(self._waiting)} jobs wait, which is the limit. Try again later.",
                    waiting=len(self._waiting),
                    limit=self.settings.max_waiting,
                    retry_after_s=1.0,
                )
            self._jobs[job.id] = job
            self._waiting.append(job)
            self._waiting.sort(key=lambda each: (-each.request.priority, each.arrival))
            self._wake.notify_all()
        return job

    def job(self, job_id: str) -> Job | None:
        """Return a job, or None if there is none of this id, or it ended long ago."""
        return self._jobs.get(job_id)

    def jobs(self) -> tuple[Job, ...]:
        """Return all jobs that are known, the oldest first."""
        with self._wake:
            return tuple(self._jobs.values())

    def close(self, drain_s: float = 0.0) -> None:
        """Take no more jobs, wait up to `drain_s` seconds for those that were taken, and end the rest."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        deadline = time.monotonic() + drain_s
        for job in self.jobs():
            while not job.status.is_final and time.monotonic() < deadline:
                time.sleep(0.01)
            job.cancel()
        self._thread.join()

    def _cancel(self, job: Job) -> None:
        job.stop.set()
        with self._wake:
            if job in self._waiting:
                self._waiting.remove(job)
                job.update(state="cancelled", error=Cancelled("cancelled before its first step.", step=0))
            self._wake.notify_all()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                job = self._waiting.pop(0)
                for place, waiting in enumerate(self._waiting):
                    waiting.update(place=place + 1)
            try:
                self._run_job(job)
            except Cancelled as ended:
                job.update(state="cancelled", error=ended)
            except CalotypeError as failed:
                job.update(state="failed", error=failed)
            except Exception as failed:
                job.update(state="failed", error=CalotypeError(f"internal error: {first_line(failed)}"))
            self._forget_old()

    def _run_job(self, job: Job) -> None:
        request = job.request
        job.update(state="running", place=0)
        pipe = self.catalog.open(self.catalog.check_name(request.model))
        for event in pipe.stream(request.prompt, **request.arguments):
            late = request.timeout_s is not None and time.monotonic() > job.arrival + request.timeout_s
            if late:
                raise DeadlineError(f"the job did not end within {request.timeout_s:g} s.", step=event.step)
            if job.stop.is_set():
                raise Cancelled(f"cancelled after {event.step} of {event.total} steps.", step=event.step)
            every, preview = request.preview_every, {}
            if every and event.step % every == 0 and event.result is None:
                preview = {"preview": tuple(event.preview()), "preview_step": event.step}
            done = {"state": "done", "result": event.result} if event.result is not None else {}
            job.update(step=event.step, total=event.total, **preview, **done)

    def _forget_old(self) -> None:
        with self._wake:
            ended = [job for job in self._jobs.values() if job.status.is_final]
            for job in ended[: max(0, len(ended) - self.settings.kept_jobs)]:
                del self._jobs[job.id]
