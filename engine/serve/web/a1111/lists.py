"""What clients ask for before they show a form: models, LoRAs, samplers, upscalers, scripts and memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ....system.memory import available_bytes, proc_bytes
from ..service import Service
from .clients import Clients
from .extras import UPSCALERS
from .samplers import samplers, schedules


def routes(service: Service, clients: Clients) -> list[Route]:
    """Return the routes of lists. Those of what this server does not have are empty."""
    catalog = service.engine.catalog
    lists: dict[str, Any] = {
        "samplers": samplers(),
        "schedulers": schedules(),
        "upscalers": [_upscaler(name) for name in UPSCALERS],
        "latent-upscale-modes": [{"name": "Latent"}],
        "sd-vae": [],
        "embeddings": {"loaded": {}, "skipped": {}},
        "prompt-styles": [],
        "scripts": {"txt2img": ["controlnet"], "img2img": ["controlnet"]},
    }

    def fixed(name: str) -> Route:
        async def answer(http: Request) -> Response:
            return JSONResponse(lists[name])

        return Route(f"/sdapi/v1/{name}", answer)

    async def models(http: Request) -> Response:
        return JSONResponse([_model(name) for name in catalog.names])

    async def loras(http: Request) -> Response:
        return JSONResponse([{"name": name, "alias": name, "path": name, "metadata": {}} for name in catalog.loras])

    async def memory(http: Request) -> Response:
        return JSONResponse(_memory())

    return [
        *map(fixed, lists),
        Route("/sdapi/v1/sd-models", models),
        Route("/sdapi/v1/loras", loras),
        Route("/sdapi/v1/memory", memory),
    ]


def _upscaler(name: str) -> dict[str, Any]:
    return {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4}


def _model(name: str) -> dict[str, Any]:
    """Describe a model by its name alone: its file is not for clients to know."""
    return {"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}


def _memory() -> dict[str, Any]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    used = proc_bytes(Path("/proc/self/status"), "VmRSS") or 0
    ram = {"free": available_bytes() or total - used, "used": used, "total": total}
    return {"ram": ram, "cuda": {"error": "unavailable"}}
