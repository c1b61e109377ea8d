"""`calotype serve --ray`: the application on the cluster of RAY_ADDRESS, or on a new one of this machine."""

from __future__ import annotations

import os
import signal
import threading

import ray
from ray import serve

from ..command.config import ServeConfig
from ..web.service.logs import log, set_up_logs
from .application import application

NAME = "calotype"


def run(config: ServeConfig) -> None:
    """Serve until SIGTERM or SIGINT, and let the jobs end that were taken."""
    set_up_logs(config.log_level)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports usage to its makers otherwise
    ended = threading.Event()
    ray.init(**({} if "RAY_ADDRESS" in os.environ else {"address": "local", "include_dashboard": False}))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        serve.start(http_options={"host": config.host, "port": config.port})
        serve.run(application(config), name=NAME, route_prefix="/")
        log("listening", {"address": f"http://{config.host}:{config.port}", "models": [*config.models]})
        ended.wait()
        log("draining", {"seconds": config.drain_s})
        serve.delete(NAME)
    finally:
        serve.shutdown()
        ray.shutdown()
