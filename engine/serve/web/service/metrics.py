"""Prometheus metrics of a service. Each service has its own registry. A scrape reads counters, and asks no device."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ...interface import JobRunner
from ...job import Job
from ...observer import Observer
from .logs import log

_IMAGES = (1, 2, 4, 8, 16, 32)
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300, 600)


class Metrics(Observer):
    """What a service counts. The engine calls the methods of `Observer` from its own thread."""

    def __init__(self, engine: JobRunner) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, CPU time, open files
        self.registry.register(_Queue(engine))
        labels, own = ("model",), self.registry
        self.jobs = Counter("calotype_jobs", "Jobs that ended, by state.", ("model", "state"), registry=own)
        self.refused = Counter("calotype_refused", "Refused requests, by reason.", ("reason",), registry=own)
        self.images = Counter("calotype_images", "Images that were generated.", labels, registry=own)
        self.seconds = _histogram("calotype_job_seconds", "From the submission of a job to its end.", labels, own)
        self.waited = _histogram("calotype_job_queue_seconds", "From a job's submission to its start.", labels, own)
        self.stages = _histogram("calotype_stage_seconds", "A stage of a job.", ("model", "stage"), own)
        self.calls = _histogram("calotype_unet_seconds", "A call of the U-Net.", labels, own)
        self.sizes = _histogram("calotype_batch_images", "Images in a call of the U-Net.", labels, own, _IMAGES)
        self.splits = Counter("calotype_batches_split", "Batches that failed and ran alone.", labels, registry=own)
        self.changes = _histogram("calotype_lora_change_seconds", "A change of LoRAs.", labels, own)

    def ended(self, job: Job, model: str, waited_s: float, seconds: float) -> None:
        """Count a job that has ended."""
        status = job.status
        self.jobs.labels(model, status.state).inc()
        self.seconds.labels(model).observe(seconds)
        self.waited.labels(model).observe(waited_s)
        if status.result is not None:
            self.images.labels(model).inc(len(status.result.seeds))
            for stage, taken in status.result.report.seconds.items():
                self.stages.labels(model, stage).observe(taken)

    def stepped(self, model: str, images: int, seconds: float) -> None:
        """Count one call of the U-Net."""
        self.calls.labels(model).observe(seconds)
        self.sizes.labels(model).observe(images)

    def split(self, model: str, reason: str) -> None:
        """Count a batch whose images ran one after another, because their common call failed."""
        self.splits.labels(model).inc()
        log("batch failed", {"model": model, "message": reason}, logging.WARNING)

    def weights_changed(self, model: str, seconds: float) -> None:
        """Count a change of LoRAs."""
        self.changes.labels(model).observe(seconds)


def _histogram(
    name: str, text: str, labels: tuple[str, ...], registry: CollectorRegistry, buckets: tuple[float, ...] = _SECONDS
) -> Histogram:
    return Histogram(name, text, labels, buckets=buckets, registry=registry)


class _Queue(Collector):
    """The jobs that wait and run, counted when Prometheus asks."""

    def __init__(self, engine: JobRunner) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        """Return the metrics now."""
        states = [job.status.state for job in self._engine.jobs()]
        yield GaugeMetricFamily("calotype_jobs_waiting", "Jobs that wait.", value=states.count("waiting"))
        yield GaugeMetricFamily("calotype_jobs_running", "Jobs that run.", value=states.count("running"))
