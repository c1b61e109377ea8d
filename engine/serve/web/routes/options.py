"""`/options`: what a form needs to describe a job."""

from __future__ import annotations

from typing import Any

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ....sampling.schedulers import scheduler_names
from ..service import Service


def routes(service: Service) -> list[Route]:
    """Return the route of options."""

    async def options(http: Request) -> Response:
        return JSONResponse(await to_thread.run_sync(_options, service))

    return [Route("/options", options)]


def _options(service: Service) -> dict[str, Any]:
    settings, catalog = service.settings, service.engine.catalog
    return {
        "models": [_model(service, name) for name in catalog.names],
        "loras": list(getattr(catalog, "loras", ())),
        "schedulers": list(scheduler_names()),
        "limits": {
            "side": settings.max_side,
            "steps": settings.max_steps,
            "images": settings.max_images,
            "prompt_length": settings.max_prompt_length,
            "body_bytes": settings.max_body_bytes,
            "upload_pixels": settings.max_upload_pixels,
            "job_s": settings.max_job_s,
        },
    }


def _model(service: Service, name: str) -> dict[str, Any]:
    pipe = service.engine.catalog.loaded(name)
    if pipe is None:
        return {"name": name, "loaded": False}
    profile = pipe.plan.profile
    return {
        "name": name,
        "loaded": True,
        "family": pipe.plan.family,
        "sizes": {
            **{"width": profile.width.opt, "min_width": profile.width.min, "max_width": profile.width.max},
            **{"height": profile.height.opt, "min_height": profile.height.min, "max_height": profile.height.max},
            "multiple": profile.multiple,
        },
        "controlnets": sum(component.startswith("controlnet") for component in pipe.plan.components),
        "takes_text": bool(pipe.plan.prompting.states),
    }
