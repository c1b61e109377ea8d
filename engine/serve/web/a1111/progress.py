"""`/sdapi/v1/progress`, `interrupt` and `skip`. A client sees and ends its own jobs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ...job import Job
from ..service import HTTPError, Service
from .clients import Clients
from .fields import Fields


def routes(service: Service, clients: Clients) -> list[Route]:
    """Return the routes of running jobs."""

    async def progress(http: Request) -> Response:
        with_image = http.query_params.get("skip_current_image", "false").lower() not in ("true", "1")
        return JSONResponse(await _progress(service, http, with_image=with_image))

    async def interrupt(http: Request) -> Response:
        for job in await _named(service, clients, http):
            job.cancel()
        return JSONResponse({})

    async def skip(http: Request) -> Response:
        for job in _active(service.jobs(http)):
            if job.status.state == "running":
                job.cancel()
        return JSONResponse({})

    return [
        Route("/sdapi/v1/progress", progress),
        Route("/sdapi/v1/interrupt", interrupt, methods=["POST"]),
        Route("/sdapi/v1/skip", skip, methods=["POST"]),
    ]


def _active(jobs: Iterable[Job]) -> list[Job]:
    return [job for job in jobs if not job.status.is_final]


async def _named(service: Service, clients: Clients, http: Request) -> list[Job]:
    """Return the jobs that an interrupt ends: that of a task's id, or those of the client, or all where allowed."""
    body = Fields(await service.json_body(http))
    task = body.text("force_task_id") or body.text("id_task") or http.query_params.get("force_task_id", "")
    if task:
        job = clients.job_of(http, task)
        if job is None:
            raise HTTPError(f"there is no task {task!r:.80}.", status=404, code="unknown_task")
        return [job]
    return _active(service.engine.jobs() if service.settings.interrupt_everybody else service.jobs(http))


async def _progress(service: Service, http: Request, *, with_image: bool) -> dict[str, Any]:
    """Return the progress of the client's running job, or else of its next one."""
    active = _active(service.jobs(http))[::-1]  # the oldest first
    job = next((job for job in active if job.status.state == "running"), active[0] if active else None)
    status = None if job is None else job.status
    url = None if job is None or not with_image else await service.preview(job, job.status)
    step, total = (status.step, status.total) if status is not None else (0, 0)
    return {
        "progress": step / total if total else 0.0,
        "eta_relative": (status.eta_s if status is not None else None) or 0.0,
        "state": {
            **{"skipped": False, "interrupted": False, "stopping_generation": False},
            **{"job": "" if job is None else job.id, "job_count": len(active), "job_timestamp": "0", "job_no": 0},
            **{"sampling_step": step, "sampling_steps": total},
        },
        "current_image": None if url is None else url.partition(",")[2],
        "textinfo": f"{status.place} jobs before this one" if status is not None and status.place else None,
    }
