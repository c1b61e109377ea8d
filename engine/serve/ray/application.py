"""The application of Ray Serve: one ingress, and workers between `min_workers` and `max_workers`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig

from ..command.config import ServeConfig, read_config
from ..web.service.logs import set_up_logs
from .remote_engine import RemoteEngine
from .worker import Worker

_MAX_CONNECTIONS, _MAX_QUEUED = 4096, 1024
_DRAINED_S = 5.0  # after the jobs have ended


class Ingress:
    """The replica that takes requests over HTTP. It holds the jobs' statuses and no weights."""

    def __init__(self, workers: Any, config: ServeConfig) -> None:
        self._workers, self._config = workers, config

    def __serve_build_asgi_app__(self) -> Any:
        """Return the ASGI application. Ray calls this when the replica starts."""
        from ..web.app import create_app

        set_up_logs(self._config.log_level)
        return create_app(RemoteEngine(self._workers, self._config), self._config, drain_s=self._config.drain_s)


def application(config: ServeConfig) -> Any:
    """Return the application of a configuration, for `ray.serve.run`."""
    # A client that waits for its image holds a request open; the number of jobs has its own limit, `max_waiting`.
    ingress: Any = serve.deployment(
        serve.ingress()(Ingress),
        max_ongoing_requests=_MAX_CONNECTIONS,
        max_queued_requests=_MAX_QUEUED,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        graceful_shutdown_timeout_s=config.drain_s + _DRAINED_S,
        ray_actor_options={"num_cpus": 0},
    )
    return ingress.bind(workers_of(config), config)


def workers_of(config: ServeConfig) -> Any:
    """Return the deployment of workers."""
    autoscaling = AutoscalingConfig(
        min_replicas=config.min_workers,
        max_replicas=config.max_workers,
        target_ongoing_requests=config.jobs_per_worker,
        upscale_delay_s=config.upscale_delay_s,
        downscale_delay_s=config.downscale_delay_s,
        metrics_interval_s=config.load_interval_s,
        look_back_period_s=2 * config.load_interval_s,
    )
    deployment: Any = serve.deployment(
        Worker,
        max_ongoing_requests=config.max_jobs_per_worker,
        graceful_shutdown_timeout_s=config.max_job_s,
        autoscaling_config=autoscaling,
        ray_actor_options={"num_cpus": config.cpus_per_worker, "num_gpus": config.gpus_per_worker},
    )
    return deployment.bind(config)


def app(args: Mapping[str, Any]) -> Any:
    """Return the application that `serve.yaml` describes.

    Args:
        args: The keys of `serve.toml`, and `config`, the path of such a file.

    Raises:
        InputError: A key or a value is unknown.
    """
    options = dict(args)
    path = options.pop("config", None)
    return application(read_config(None if path is None else Path(path), options))
