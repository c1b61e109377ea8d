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
from ....errors.validation import check_float
from ....images.mask_crop import scaled_over
from ....images.png import PARAMETERS, texts_of
from ..service import Service
from ..service.images import as_base64
from .clients import Clients
from .fields import Fields
from .images import Size, check_size

UPSCALERS = {"None": None, "Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}
_SCALE = 2.0
_MAX_SCALE = 64.0
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
    name = fields.text("upscaler_1", "None")
    if name not in UPSCALERS:
        expected = ", ".join(UPSCALERS)
        message = f"there is no upscaler {name!r:.80}; expected one of {expected}."
        raise InputError(message, argument="upscaler_1", got=name, expected=expected)
    decode, resampling = service.image_decoder(), UPSCALERS[name]
    images = [decode(value, "image").convert("RGB") for value in values]
    if resampling is None:
        return [as_base64(image) for image in images]
    sizes = [_size(service, fields, image) for image in images]
    pixels, limit = sum(width * height for width, height in sizes), service.settings.max_upload_pixels
    if pixels > limit:
        message = f"the images would have {pixels} pixels together; expected at most {limit}."
        raise InputError(message, argument="imageList", got=pixels, expected=f"at most {limit}")
    crops = fields.integer("resize_mode", 0) == _BY_SIZE and fields.flag("upscaling_crop", True)
    return [
        as_base64(scaled_over(image, *size, resampling) if crops else image.resize(size, resampling))
        for image, size in zip(images, sizes, strict=True)
    ]


def _size(service: Service, fields: Fields, image: Image.Image) -> Size:
    """Return the size that a request asks for. Raises `InputError` if it is beyond the limits."""
    if fields.integer("resize_mode", 0) == _BY_SIZE:
        size = fields.integer("upscaling_resize_w", 512), fields.integer("upscaling_resize_h", 512)
    else:
        scale = check_float("upscaling_resize", fields.number("upscaling_resize", _SCALE), _MAX_SCALE)
        size = round(image.width * scale), round(image.height * scale)
    check_size(service, size)
    return size
