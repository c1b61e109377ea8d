"""Settings of the server on Ray."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """How many workers Ray starts, and what each needs.

    Attributes:
        ray: Serve on Ray: a process that takes the requests, and workers with an engine each.
        min_workers: Workers that stay without work. With 0, the first request after a pause waits for a start.
        max_workers: The largest number of workers.
        jobs_per_worker: Ray adds workers so that each has about this many jobs.
        max_jobs_per_worker: A worker takes no more jobs. More than a batch, so that a free slot has its next image.
        upscale_delay_s: Seconds of more load before Ray adds a worker. From 0 workers, it adds the first at once.
        downscale_delay_s: Seconds of less load before Ray stops a worker, which ends its jobs first.
        load_interval_s: Seconds between two measurements of the load.
        cpus_per_worker: CPU cores of a worker.
        gpus_per_worker: GPUs of a worker.
        attempts: A job whose workers died this many times fails. A job that kills its workers must end.
    """

    ray: bool = False
    min_workers: int = 0
    max_workers: int = 2
    jobs_per_worker: int = 8
    max_jobs_per_worker: int = 16
    upscale_delay_s: float = 5.0
    downscale_delay_s: float = 300.0
    load_interval_s: float = 5.0
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    attempts: int = 4
