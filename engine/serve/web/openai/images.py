"""`/v1/images/generations`, `edits` and `variations`."""

from __future__ import annotations

from typing import Any

from anyio import to_thread
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ....errors import InputError
from ..service import Service
from .answers import answer
from .calls import call_from, mask_from_alpha
from .forms import form_body, single

VARIATION_STRENGTH = 0.6


def routes(service: Service) -> list[Route]:
    """Return the routes of images."""

    async def generations(http: Request) -> Response:
        body = await service.json_body(http)
        return await answer(service, http, await call_from(service, body, "image_generation"))

    async def edits(http: Request) -> Response:
        body = await form_body(service, http)
        image, mask = _image(body), single(body, "mask")
        body = {name: value for name, value in body.items() if name != "mask"}
        if "mask_image" not in body:
            body |= await to_thread.run_sync(_mask, image, mask)
        return await answer(service, http, await call_from(service, {**body, "image": image}, "image_edit"))

    async def variations(http: Request) -> Response:
        body = await form_body(service, http)
        body["image"] = _image(body)
        name = service.model_of(body.get("model"))
        if not await to_thread.run_sync(_takes_vision, service, name):
            body = {"prompt": "", "strength": VARIATION_STRENGTH, **body}
        return await answer(service, http, await call_from(service, body, "image_edit"))

    return [
        Route("/v1/images/generations", generations, methods=["POST"]),
        Route("/v1/images/edits", edits, methods=["POST"]),
        Route("/v1/images/variations", variations, methods=["POST"]),
    ]


def _takes_vision(service: Service, name: str) -> bool:
    """Return whether a model generates variations of an image; opens it if necessary."""
    return service.engine.catalog.open(name).plan.takes("vision")


def _image(body: dict[str, Any]) -> Image.Image:
    image = single(body, "image")
    if not isinstance(image, Image.Image):
        message = "image must be the file of a PNG, JPEG or WebP, as a part of the form with a file name."
        raise InputError(message, argument="image", expected="a PNG, JPEG or WebP")
    return image


def _mask(image: Image.Image, mask: Any) -> dict[str, Image.Image]:
    """Return the argument for a mask in OpenAI's convention, or for the transparency of the image without one."""
    if mask is None:
        own = mask_from_alpha(image)
        return {"mask_image": own} if own is not None and own.getbbox() else {}
    ours = mask_from_alpha(mask) if isinstance(mask, Image.Image) else None
    if ours is None:
        message = "mask has no transparency; expected a PNG that is transparent where the image is edited. A mask that "
        message += "is white there is the field mask_image."
        raise InputError(message, argument="mask", expected="a PNG with transparency")
    if ours.size != image.size:
        message = f"mask has {ours.width} x {ours.height} pixels, and image {image.width} x {image.height}."
        raise InputError(message, argument="mask", expected="the size of image")
    return {"mask_image": ours}
