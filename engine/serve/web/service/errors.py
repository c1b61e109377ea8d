"""Errors as HTTP answers: a status, headers, and a body in the form of the API that the client uses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ....errors import (
    BackendError,
    CalotypeError,
    Cancelled,
    DeadlineError,
    DeviceFullError,
    InputError,
    NotFiniteError,
    QueueFullError,
    SamplerError,
)

# The first class that fits decides. 499 is nginx's status for a client that has gone, which no client tries again.
STATUSES: tuple[tuple[type[CalotypeError], int], ...] = (
    (InputError, 400),
    (SamplerError, 400),
    (QueueFullError, 429),
    (DeadlineError, 504),
    (Cancelled, 499),
    (DeviceFullError, 503),
)
# Messages of other errors may name the server's files.
_SHOWN = (InputError, SamplerError, QueueFullError, Cancelled, DeviceFullError, NotFiniteError)
_RETRY_S = 5.0


class HTTPError(CalotypeError):
    """A request that the service refuses, with its HTTP status.

    Attributes:
        status: The HTTP status.
        code: A short name, which programs may compare.
        headers: Headers of the answer.
    """

    def __init__(
        self, message: str = "", *, status: int = 400, code: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers


class ClientGone(CalotypeError):
    """The client closed the connection before the answer. Nobody reads what follows."""


def status_of(error: CalotypeError) -> int:
    """Return the HTTP status of an error."""
    if isinstance(error, HTTPError):
        return error.status
    return next((status for kind, status in STATUSES if isinstance(error, kind)), 500)


def describe_error(error: CalotypeError) -> dict[str, Any]:
    """Return what a client may know of an error: its type, message and data."""
    if isinstance(error, HTTPError):
        return {"type": error.code, "message": str(error)}
    name = type(error).__name__
    if isinstance(error, _SHOWN):
        return {"type": name, "message": str(error), **error.data}
    reason = "the backend failed" if isinstance(error, BackendError) else "the server failed"
    return {"type": name, "message": f"{reason}. Its log has the reason, under the id of this request."}


def error_response(http: Request, error: CalotypeError) -> Response:
    """Return the answer to a request that failed, in the form of the API that its path belongs to."""
    status = _status(http, error)
    headers = dict(error.headers or {}) if isinstance(error, HTTPError) else {}
    if status in (429, 503):
        seconds = getattr(error, "retry_after_s", None) or _RETRY_S
        headers.setdefault("Retry-After", str(math.ceil(seconds)))
    if status in (500, 504):
        headers["X-Should-Retry"] = "false"  # of OpenAI's clients: the same request would fail again
    return JSONResponse(error_body(http, error), status, headers)


def error_body(http: Request, error: CalotypeError) -> dict[str, Any]:
    """Return an error as JSON data in the form of the API that the path of a request belongs to."""
    path, status, known = http.url.path, _status(http, error), describe_error(error)
    if path.startswith("/v1/"):
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
            status, "invalid_request_error" if status < 500 else "server_error"
        )
        named = {"param": known.get("argument"), "code": known["type"]}
        if status == 404 and named["param"] == "model":
            named["code"] = "model_not_found"
        return {"error": {"message": known["message"], "type": kind, **named}}
    if path.startswith("/sdapi/"):
        return {"error": known["type"], "detail": known["message"], "body": "", "errors": known["message"]}
    return {"error": known}


def _status(http: Request, error: CalotypeError) -> int:
    """Return the HTTP status of an error, which OpenAI's API sets to 404 for an unknown model."""
    if isinstance(error, InputError) and error.argument == "model" and http.url.path.startswith("/v1/"):
        return 404
    return status_of(error)
