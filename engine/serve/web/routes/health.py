"""`/health/live`, `/health/ready` and `/metrics`."""

from __future__ import annotations

from anyio import to_thread
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..service import Service


def routes(service: Service) -> list[Route]:
    """Return the routes for those who watch the server."""

    async def live(http: Request) -> Response:
        return JSONResponse({"status": "live"})

    async def ready(http: Request) -> Response:
        return JSONResponse({"status": "ready" if service.ready else "not ready"}, 200 if service.ready else 503)

    async def metrics(http: Request) -> Response:
        text = await to_thread.run_sync(generate_latest, service.metrics.registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return [Route("/health/live", live), Route("/health/ready", ready), Route("/metrics", metrics)]
