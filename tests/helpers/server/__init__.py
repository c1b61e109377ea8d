"""A real uvicorn server in a thread, on a free port of the loopback interface."""

import socket
import threading
from contextlib import contextmanager

import httpx
import uvicorn

from calotype.serve.web.app import create_app


@contextmanager
def serving(engine, settings=None, app=None):
    """Run a server while the block runs. Yields its address. The server closes the engine at its end.

    Args:
        engine: The `Engine`.
        settings: `ServiceSettings`.
        app: Another ASGI application in place of the service's.
    """
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app or create_app(engine, settings), log_config=None, timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"  # the socket accepts before the server reads
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def events_of(address, job_id, headers=None):
    """Yield (name, data) for each event of a job."""
    with httpx.stream("GET", f"{address}/jobs/{job_id}/events", headers=headers, timeout=60) as response:
        response.raise_for_status()
        name = ""
        for line in response.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, line.removeprefix("data: ")
