"""`/files/{name}`: the images of jobs."""

from __future__ import annotations

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from ..service import HTTPError, Service


def routes(service: Service) -> list[Route]:
    """Return the route of files."""

    async def file(http: Request) -> Response:
        owner = None if http.state.key is None else service.owner_of(http)
        kept = await to_thread.run_sync(service.files.find, http.path_params["name"], owner)
        if kept is None:
            raise HTTPError("there is no file of this name, or it has expired.", status=404, code="unknown_file")
        headers = {"Cache-Control": "private, max-age=3600", "Content-Security-Policy": "default-src 'none'"}
        return FileResponse(kept.path, headers=headers, media_type=kept.media)

    return [Route("/files/{name}", file)]
