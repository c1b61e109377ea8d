"""`JobRunner`: what the web service needs of an engine. `Engine` runs jobs here, and that of Ray in other processes."""

from __future__ import annotations

from typing import Protocol

from .catalog import ModelCatalog
from .job import Job, JobRequest
from .observer import EngineStats, Observer
from .settings import EngineSettings


class JobRunner(Protocol):
    """Takes jobs from many threads. `Engine` describes each method."""

    catalog: ModelCatalog
    settings: EngineSettings
    is_local: bool  # whether the models run in this process, which may warm them up

    @property
    def stats(self) -> EngineStats:
        """How many jobs wait and run now."""

    def observe(self, observer: Observer) -> None:
        """Tell this observer of each step from now on."""

    def submit(self, request: JobRequest) -> Job:
        """Take a job."""

    def job(self, job_id: str) -> Job | None:
        """Return a job."""

    def jobs(self) -> tuple[Job, ...]:
        """Return all jobs that are known."""

    def close(self, drain_s: float = 0.0) -> None:
        """End the jobs that were taken."""
