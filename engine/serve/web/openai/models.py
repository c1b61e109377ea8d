"""`GET /v1/models`."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..service import HTTPError, Service


def routes(service: Service) -> list[Route]:
    """Return the routes of models."""
    created = int(time.time())

    def model(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": created, "owned_by": "calotype"}

    async def listed(http: Request) -> Response:
        return JSONResponse({"object": "list", "data": [model(name) for name in service.engine.catalog.names]})

    async def one(http: Request) -> Response:
        name = http.path_params["name"]
        if name not in service.engine.catalog.names:
            raise HTTPError(f"there is no model {name!r:.80}.", status=404, code="model_not_found")
        return JSONResponse(model(name))

    return [Route("/v1/models", listed), Route("/v1/models/{name:path}", one)]
