"""Server-sent events, and the watch for clients that close their connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send


def event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    """Return one event as it is sent."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data)}\n\n".encode()


async def disconnected(receive: Receive) -> None:
    """Wait until the client has closed its connection. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """An answer of events. A client that closes the connection ends the iterator at once."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], idle_s: float, closed: Callable[[], None] | None = None) -> None:
        """Send what `events` yields.

        Args:
            events: Encoded events.
            idle_s: Seconds without an event after which a comment is sent.
            closed: Runs when the stream ends, in whatever way.
        """
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._idle_s, self._closed = events, idle_s, closed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run as an ASGI application."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        gone = asyncio.ensure_future(disconnected(receive))
        sending = asyncio.ensure_future(self._send(send))
        try:
            await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (gone, sending):
                task.cancel()
            await asyncio.gather(gone, sending, return_exceptions=True)
            if self._closed is not None:
                self._closed()
        if not sending.cancelled() and (failed := sending.exception()) is not None:
            raise failed

    async def _send(self, send: Send) -> None:
        following = asyncio.ensure_future(anext(self._events, None))
        try:
            while True:
                done, _ = await asyncio.wait({following}, timeout=self._idle_s)
                body = following.result() if done else b": still here\n\n"
                await send({"type": "http.response.body", "body": body or b"", "more_body": body is not None})
                if body is None:
                    return
                if done:
                    following = asyncio.ensure_future(anext(self._events, None))
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


def is_gone(http: Request) -> asyncio.Task[None]:
    """Return a task that ends when the client of a request has closed its connection."""
    return asyncio.ensure_future(disconnected(http.receive))
