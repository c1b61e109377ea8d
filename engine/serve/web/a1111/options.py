"""`/sdapi/v1/options`, for each client, and `cmd-flags`."""

from __future__ import annotations

from typing import Any

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ....errors import InputError
from ..service import Service
from .call import model_from
from .clients import ClientOptions, Clients
from .fields import Fields

# Options that clients read. They describe this server, and cannot be changed.
_FIXED: dict[str, Any] = {
    **{"sd_vae": "Automatic", "sd_checkpoint_hash": "", "samples_format": "png", "grid_save": False},
    **{"return_grid": False, "enable_pnginfo": True, "live_previews_enable": True, "show_progress_every_n_steps": 5},
    **{"live_previews_image_format": "jpeg", "randn_source": "CPU", "img2img_fix_steps": False},
    **{"eta_noise_seed_delta": 0, "inpainting_mask_weight": 1.0, "sd_lora": "None"},
}
_MODEL, _CLIP = "sd_model_checkpoint", "CLIP_stop_at_last_layers"
_LAYERS = 12


def routes(service: Service, clients: Clients) -> list[Route]:
    """Return the routes of options."""

    async def options(http: Request) -> Response:
        return JSONResponse(_shown(service, clients.options(http)))

    async def set_options(http: Request) -> Response:
        body = await service.json_body(http)
        changes = await to_thread.run_sync(_changes, service, body)
        clients.set_options(http, **changes)
        return JSONResponse(None)

    async def flags(http: Request) -> Response:
        flags = {"api": True, "nowebui": False, "listen": False, "share": False, "medvram": False, "lowvram": False}
        return JSONResponse(flags)

    return [
        Route("/sdapi/v1/options", options, methods=["GET"]),
        Route("/sdapi/v1/options", set_options, methods=["POST"]),
        Route("/sdapi/v1/cmd-flags", flags),
    ]


def _shown(service: Service, options: ClientOptions) -> dict[str, Any]:
    return {_MODEL: options.model or service.model_of(None), _CLIP: options.clip_stop, **_FIXED}


def _changes(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    """Return the changed options. Clients may send back what they read. Raises `InputError` for any other option."""
    fields, changes = Fields(body), dict[str, Any]()
    for name, value in body.items():
        if name == _MODEL:
            changes["model"] = model_from(service, fields.text(name))
        elif name == _CLIP:
            changes["clip_stop"] = _layer(fields.integer(name, 1))
        elif value is not None and (name not in _FIXED or value != _FIXED[name]):
            expected = f"{_MODEL} and {_CLIP}"
            known = "cannot be changed" if name in _FIXED else "is unknown here"
            message = f"the option {name!r:.80} {known}; this server takes {expected}, for this client alone."
            raise InputError(message, argument=name[:80], got=value, expected=expected)
    return changes


def _layer(value: int) -> int:
    if not 1 <= value <= _LAYERS:
        expected = f"a whole number from 1 to {_LAYERS}"
        raise InputError(f"{_CLIP} must be {expected}, got {value}.", argument=_CLIP, got=value, expected=expected)
    return value
