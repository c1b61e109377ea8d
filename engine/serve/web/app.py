"""`create_app`: the ASGI application of a service, which joins the routes of all APIs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException as StarletteError
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from ...errors import CalotypeError
from .. import page
from ..interface import JobRunner
from . import a1111
from .openai import images, models
from .routes import description, files, health, jobs, options
from .service import ClientGone, HTTPError, Service, ServiceSettings, error_response
from .service.errors import status_of
from .service.guard import Guard

ROUTES = (jobs, files, options, health, description, models, images, a1111)


def create_app(engine: JobRunner, settings: ServiceSettings | None = None, *, drain_s: float = 0.0) -> Starlette:
    """Return the web service of an engine, as an ASGI application.

    Args:
        engine: What runs the jobs. The application closes it at its end.
        settings: Limits and rights.
        drain_s: Seconds that jobs may still take once the application ends.

    Returns:
        The application. `app.state.service` is its `Service`.

    Raises:
        InputError: The key file is missing or invalid.
    """
    service = Service(engine, settings)
    app = Starlette(
        routes=[*page.routes(), *(route for module in ROUTES for route in module.routes(service))],
        middleware=_middleware(service),
        lifespan=partial(_lifespan, service, drain_s),
        exception_handlers={CalotypeError: _answer_error, StarletteError: _answer_of_starlette},
    )
    app.state.service = service
    return app


@asynccontextmanager
async def _lifespan(service: Service, drain_s: float, app: Starlette) -> AsyncIterator[None]:
    warming = asyncio.create_task(service.warm_up())
    yield
    service.ready = False
    warming.cancel()
    await asyncio.gather(warming, return_exceptions=True)
    await service.close(drain_s)


def _middleware(service: Service) -> list[Middleware]:
    guard = Middleware(Guard, service.settings, service.keys, service.refused)
    if not service.settings.cors_origins:
        return [guard]
    cors = Middleware(
        CORSMiddleware,
        allow_origins=service.settings.cors_origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
        expose_headers=["X-Request-Id", "Retry-After"],
    )
    return [cors, guard]  # the outer one first: refusals are readable for allowed pages as well


async def _answer_error(http: Request, error: Exception) -> Response:
    assert isinstance(error, CalotypeError)
    if isinstance(error, ClientGone):
        raise error
    service: Service = http.app.state.service
    if status_of(error) < 500:
        service.refused(error)
    return error_response(http, error)


async def _answer_of_starlette(http: Request, error: Exception) -> Response:
    """Return the answer for an unknown path, a wrong method, or a malformed form."""
    assert isinstance(error, StarletteError)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    return error_response(
        http, HTTPError(f"{error.detail}.", status=error.status_code, code=code, headers=error.headers)
    )
