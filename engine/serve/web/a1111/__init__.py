"""AUTOMATIC1111's web API (`/sdapi/v1`), for the clients that speak it: plugins of image editors and chat programs.

Field names and defaults are those of its version 1.10. What has no counterpart here does not fail a request: the
answer's `info` lists it under `comments`.
"""

from __future__ import annotations

from starlette.routing import Route

from ..service import Service
from . import controlnet, extras, generate, lists, options, progress
from .clients import Clients


def routes(service: Service) -> list[Route]:
    """Return the routes of the API, which share what they know of each client."""
    clients = Clients(service)
    modules = (generate, progress, options, lists, controlnet, extras)
    return [route for module in modules for route in module.routes(service, clients)]
