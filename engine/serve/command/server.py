"""The process of `calotype serve`: logs, the engine of a configuration, and uvicorn."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import uvicorn
from anyio import to_thread

from ...errors import InputError
from ...loading import load
from ..catalog import Loader, ModelCatalog, loras_in
from ..engine import Engine
from ..web.app import create_app
from ..web.service import Service
from ..web.service.logs import JSONLines, log
from .config import Model, ServeConfig

_BACKLOG = 512
_END_S = 5.0  # after the jobs have ended, for answers that are still being sent


def engine_of(config: ServeConfig) -> Engine:
    """Return the engine of a configuration, whose models are not open yet."""
    loras = {} if config.lora_folder is None else loras_in(config.lora_folder.expanduser())
    models = {name: _loader(model, config) for name, model in config.models.items()}
    return Engine(ModelCatalog(models, loras, config.memory_bytes), config)


def run(config: ServeConfig) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        InputError: The configuration cannot be served: the port is taken, or a file is missing.
    """
    _set_up_logs(config.log_level)
    listening = _socket(config.host, config.port)
    app = create_app(engine_of(config), config, drain_s=config.drain_s)
    host, port = listening.getsockname()[:2]
    log("listening", {"address": f"http://{f'[{host}]' if ':' in host else host}:{port}", "models": [*config.models]})
    server = Server(app, config)
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises the signal again at its end, for this handler
        signal.signal(number, lambda *_: None)
    server.run([listening])
    if (failed := app.state.service.failed) is not None:
        raise failed


class Server(uvicorn.Server):
    """uvicorn, whose end lets the jobs finish that the engine has taken."""

    def __init__(self, app: Any, config: ServeConfig) -> None:
        self._service: Service = app.state.service
        self._drain_s = config.drain_s
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=round(config.drain_s + _END_S),
            )
        )

    async def on_tick(self, counter: int) -> bool:
        """Return whether to end: also if a model cannot be opened."""
        return await super().on_tick(counter) or self._service.failed is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections and no more jobs, and wait for those that were taken, with clients or not."""
        log("draining", {"seconds": self._drain_s})
        await asyncio.gather(to_thread.run_sync(self._service.engine.close, self._drain_s), super().shutdown(sockets))


def _loader(model: Model, config: ServeConfig) -> Loader:
    backends = [name.strip() for name in config.backend.split(",") if name.strip()]
    shared: dict[str, Any] = {"backend": backends[0] if len(backends) == 1 else backends, "offline": config.offline}
    if config.controlnet:
        shared["controlnet"] = list(config.controlnet)
    own: Mapping[str, Any] = {"model": model} if isinstance(model, str) else model
    return partial(load, **{**shared, **own})


def _socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        message = f"cannot listen on {host}, port {port}: {error.strerror or error}. Choose another with --port."
        raise InputError(message, argument="port", got=port) from None


def _set_up_logs(level: str) -> None:
    names = logging.getLevelNamesMapping()
    if level.upper() not in names:
        expected = "debug, info, warning or error"
        message = f"log_level must be {expected}, got {level!r:.40}."
        raise InputError(message, argument="log_level", got=level, expected=expected)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONLines())
    logging.basicConfig(level=names[level.upper()], handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, names[level.upper()]))
