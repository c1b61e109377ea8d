"""`/jobs`: a job is submitted, watched, listed and ended. It outlives the connection that submitted it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ...job import Job
from ..service import Service
from ..service.events import EventStream, event


def routes(service: Service) -> list[Route]:
    """Return the routes of jobs."""
    own = _Jobs(service)
    return [
        Route("/jobs", own.submit, methods=["POST"]),
        Route("/jobs", own.listed, methods=["GET"]),
        Route("/jobs/{id}", own.status, methods=["GET"]),
        Route("/jobs/{id}", own.cancel, methods=["DELETE"]),
        Route("/jobs/{id}/events", own.events, methods=["GET"]),
    ]


class _Jobs:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def submit(self, http: Request) -> Response:
        body = await self._service.json_body(http)
        job = await self._service.submit(http, await self._service.job_from(body), keep=True)
        if body.get("cancel_on_disconnect") is True:
            self._service.cancel_on_disconnect.add(job)
        described = await self._service.describe(http, job)
        return JSONResponse(described, 202, {"Location": f"/jobs/{job.id}"})

    async def listed(self, http: Request) -> Response:
        jobs = self._service.jobs(http)
        return JSONResponse({"jobs": [await self._service.describe(http, job) for job in jobs]})

    async def status(self, http: Request) -> Response:
        job = self._service.job(http, http.path_params["id"])
        return JSONResponse(await self._service.describe(http, job))

    async def cancel(self, http: Request) -> Response:
        job = self._service.job(http, http.path_params["id"])
        job.cancel()
        return JSONResponse(await self._service.describe(http, job))

    async def events(self, http: Request) -> Response:
        job = self._service.job(http, http.path_params["id"])
        ends = job in self._service.cancel_on_disconnect
        return EventStream(self._events(http, job), self._service.settings.stream_idle_s, job.cancel if ends else None)

    async def _events(self, http: Request, job: Job) -> AsyncIterator[bytes]:
        """Yield an event for each change: its name is the new state, or "preview", or "step"."""
        state, preview_step = "", 0
        async for status in job.updates():
            name: str = status.state if status.state != state else "step"
            if name == "step" and status.preview_step > preview_step:
                name = "preview"
            state, preview_step = status.state, status.preview_step
            yield event(await self._service.describe(http, job, status), name)
