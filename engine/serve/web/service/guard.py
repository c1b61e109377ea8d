"""The outermost layer of the service: request ids, hosts and origins, API keys, and limits of the body.

It is plain ASGI: a layer that buffered answers would delay streams, and hide that a client has gone.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import secrets
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ....errors import CalotypeError
from ...service_settings import ServiceSettings
from .errors import ClientGone, HTTPError, error_response
from .keys import Key, Keys
from .logs import log, logger

OPEN = ("/", "/favicon.ico", "/health/live", "/health/ready")  # paths that need no key
OPEN_FOLDERS = ("/files/", "/page/")  # of names that cannot be guessed, and of the page's own files
_SAFE = ("GET", "HEAD", "OPTIONS")
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_BODY_TOO_LARGE = "body_too_large"


class Guard:
    """Checks each request before its route, and logs it after its answer."""

    def __init__(
        self, app: ASGIApp, settings: ServiceSettings, keys: Keys | None, refuse: Callable[[CalotypeError], None]
    ) -> None:
        """Wrap an application.

        Args:
            app: What answers.
            settings: The limits.
            keys: The API keys; None lets everybody in.
            refuse: Counts a refused request.
        """
        self._app, self._settings, self._keys, self._refuse = app, settings, keys, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run as an ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        http, begin, answer = Request(scope), time.perf_counter(), {"status": 499}
        passed = http.headers.get("x-request-id", "")
        request_id = passed if _REQUEST_ID.fullmatch(passed) else secrets.token_hex(8)
        http.state.request_id = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer["status"] = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers.setdefault("X-Content-Type-Options", "nosniff")
            await send(message)

        try:
            self._check(http)
            limited = _Body(receive, http.headers, self._settings)
            await self._app(scope, limited, send_with_id)
        except (ClientGone, ClientDisconnect):
            pass
        except CalotypeError as error:  # of this layer: the routes have answered theirs
            self._refuse(error)
            await error_response(http, error)(scope, receive, send_with_id)
        except Exception:
            logger.exception("internal error", extra={"fields": {"request_id": request_id, "path": http.url.path}})
            if answer["status"] != 499:  # the answer has begun: closing the connection is all that is left
                raise
            await error_response(http, CalotypeError("internal error"))(scope, receive, send_with_id)
        finally:
            seconds = round(time.perf_counter() - begin, 6)
            owner = getattr(http.state, "owner", None)
            done = {"method": http.method, "path": http.url.path, "status": answer["status"], "seconds": seconds}
            level = logging.DEBUG if http.url.path.startswith("/health/") else logging.INFO
            log("request", {"request_id": request_id, "owner": owner, **done}, level)

    def _check(self, http: Request) -> None:
        """Set the owner of a request. Raises `HTTPError` if it may not pass."""
        path, address = http.url.path, http.client.host if http.client else ""
        host = http.headers.get("host", "")
        checked = self._keys is None or self._settings.allowed_hosts  # a page that rebinds a name knows no key
        if checked and not _is_safe_host(host, self._settings.allowed_hosts):
            message = f"the server is not known as {host!r:.100}. Add the name to allowed_hosts."
            raise HTTPError(message, status=421, code="unknown_host")
        origin = http.headers.get("origin")
        if http.method not in _SAFE and origin is not None and not self._may_post(origin, host):
            message = f"pages of {origin!r:.100} may not use this server. Add the origin to cors_origins."
            raise HTTPError(message, status=403, code="unknown_origin")
        http.state.owner, http.state.key = f"address {address}", None
        if self._keys is None or http.method == "OPTIONS":  # a browser asks without a key
            return
        authorization = http.headers.get("authorization")
        if authorization is None and (path in OPEN or path.startswith(OPEN_FOLDERS)):
            return
        key: Key = self._keys.check(authorization)
        http.state.owner, http.state.key = f"key {key.name}", key

    def _may_post(self, origin: str, host: str) -> bool:
        return origin in self._settings.cors_origins or (host != "" and urlsplit(origin).netloc == host)


class _Body:
    """The `receive` of a request whose body has limits of size and time."""

    def __init__(self, receive: Receive, headers: Headers, settings: ServiceSettings) -> None:
        self._receive, self._limit = receive, settings.max_body_bytes
        self._bytes, self._done = 0, False
        self._deadline = time.monotonic() + settings.body_timeout_s
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._limit:
            raise self._too_large()

    async def __call__(self) -> Message:
        if self._done:
            return await self._receive()
        try:
            async with asyncio.timeout(max(0.0, self._deadline - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            text = "the body of the request did not arrive in time."
            raise HTTPError(text, status=408, code="slow_body", headers={"Connection": "close"}) from None
        self._bytes += len(message.get("body", b""))
        self._done = not message.get("more_body", False)
        if self._bytes > self._limit:
            raise self._too_large()
        return message

    def _too_large(self) -> HTTPError:
        message = f"the body has more than {self._limit} bytes, the limit of this server."
        return HTTPError(message, status=413, code=_BODY_TOO_LARGE, headers={"Connection": "close"})


def _is_safe_host(host: str, allowed: tuple[str, ...]) -> bool:
    """Return whether a Host header cannot come from a page that rebound its own name to this server's address."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name == "localhost" or name in allowed:
            return True
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
