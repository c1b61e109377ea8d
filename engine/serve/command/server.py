"""The process of `calotype serve`: logs, the engine of a configuration, and uvicorn."""

from __future__ import annotations

import asyncio
import signal
import socket
from typing import Any

import uvicorn
from anyio import to_thread

from ...backends.openvino.shapes import keep_for_server
from ...errors import InputError
from ..web.app import create_app
from ..web.service import Service
from ..web.service.logs import log, set_up_logs
from .config import ServeConfig
from .models import engine_of

_BACKLOG = 512
_END_S = 5.0  # after the jobs have ended, for answers that are still being sent


def run(config: ServeConfig) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        InputError: The configuration cannot be served: the port is taken, or a file is missing.
    """
    set_up_logs(config.log_level)
    keep_for_server()
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


def _socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        message = f"cannot listen on {host}, port {port}: {error.strerror or error}. Choose another with --port."
        raise InputError(message, argument="port", got=port) from None
