"""`/sdapi/v1/png-info`, `extra-single-image` and `extra-batch-images`: what needs no diffusion model."""

from __future__ import annotations

import html
from typing import Any

from anyio import to_thread
from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ....errors import InputError
from ....images.mask_crop import scaled_over
from ....images.png import PARAMETERS, texts_of
from ..service import Service
from ..service.images import as_base64
from .clients import Clients
from .fields import Fields
from .images import Size

UPSCALERS = {"None": None, "Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}
_SCALE = 2.0
_MOST_IMAGES = 32
_BY_SIZE = 1  # a resize_mode


def routes(service: Service, clients: Clients) -> list[Route]:
    """Return the routes of texts and sizes of images."""

    async def png_info(http: Request) -> Response:
        return JSONResponse(await to_thread.run_sync(_png_info, service, await service.json_body(http)))

    async def single(http: Request) -> Response:
        fields = Fields(await service.json_body(http))
        images = await to_thread.run_sync(_enlarged, service, fields, [fields.values.get("image")])
        return JSONResponse({"html_info": "", "image": images[0]})

    async def several(http: Request) -> Response:
        fields = Fields(await service.json_body(http))
        files = [Fields(entry) for entry in fields.items("imageList") if isinstance(entry, dict)]
        images = await to_thread.run_sync(_enlarged, service, fields, [file.values.get("data") for file in files])
        return JSONResponse({"html_info": "", "images": images})

    return [
        Route("/sdapi/v1/png-info", png_info, methods=["POST"]),
        Route("/sdapi/v1/extra-single-image", single, methods=["POST"]),
        Route("/sdapi/v1/extra-batch-images", several, methods=["POST"]),
    ]


def _png_info(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    texts = texts_of(service.image_from_base64(body.get("image")))
    info = texts.get(PARAMETERS, "")
    items = {name: html.escape(text) if name != PARAMETERS else text for name, text in texts.items()}
    return {"info": info, "items": items, "parameters": {}}


def _enlarged(service: Service, fields: Fields, values: list[Any]) -> list[str]:
    """Return enlarged images as base64."""
    if len(values) > _MOST_IMAGES:
        raise InputError(f"imageList has {len(values)} images; expected at most {_MOST_IMAGES}.", argument="imageList")
    name = fields.text("upscaler_1", "None")
    if name not in UPSCALERS:
        expected = ", ".join(UPSCALERS)
        message = f"there is no upscaler {name!r:.80}; expected one of {expected}."
        raise InputError(message, argument="upscaler_1", got=name, expected=expected)
    decode, resampling = service.image_decoder(), UPSCALERS[name]
    images = [decode(value, "image").convert("RGB") for value in values]
    return [
        as_base64(image if resampling is None else _resized(service, fields, image, resampling)) for image in images
    ]


def _resized(service: Service, fields: Fields, image: Image.Image, resampling: Image.Resampling) -> Image.Image:
    scale = fields.number("upscaling_resize", _SCALE)
    size = round(image.width * scale), round(image.height * scale)
    by_size = fields.integer("resize_mode", 0) == _BY_SIZE
    if by_size:
        size = fields.integer("upscaling_resize_w", 512), fields.integer("upscaling_resize_h", 512)
    _check_size(service, size)
    if by_size and fields.flag("upscaling_crop", True):
        return scaled_over(image, *size, resampling)
    return image.resize(size, resampling)


def _check_size(service: Service, size: Size) -> None:
    limit = service.settings.max_side
    if not (1 <= size[0] <= limit and 1 <= size[1] <= limit):
        expected = f"sides of 1 to {limit} pixels"
        message = f"the image would have {size[0]} x {size[1]} pixels; expected {expected}."
        raise InputError(message, argument="upscaling_resize", expected=expected)
