"""A request to OpenAI's image API as a job, and what its answer must look like.

Fields of OpenAI that name no property of a diffusion model (`quality`, `style`, `user`) are read and ignored. All
fields of a Python call are taken besides them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from ....errors import InputError
from ....errors.validation import check_int
from ...job import JobRequest
from ..service import Service
from ..service.images import FORMATS, Format

IGNORED = ("quality", "style", "user", "moderation", "safety_identifier", "input_fidelity", "complexity")
OWN = ("n", "size", "response_format", "output_format", "output_compression", "background", "stream", "partial_images")
MAX_PARTIAL_IMAGES = 3
_DEFAULT_STEPS = 20  # of a call
Task = Literal["image_generation", "image_edit"]


@dataclass(frozen=True, kw_only=True)
class ImageCall:
    """A call of OpenAI's API.

    Attributes:
        job: What to generate.
        task: The first word of the stream's events.
        response_format: "url" or "b64_json"; None answers with both, because their defaults depend on OpenAI's models.
        output_format: The format of the files.
        quality: Of a JPEG or a WebP, 1 to 100.
        stream: Whether to answer with events.
        partial_images: The number of previews in a stream.
    """

    job: JobRequest
    task: Task
    response_format: Literal["url", "b64_json"] | None
    output_format: Format
    quality: int | None
    stream: bool
    partial_images: int


async def call_from(service: Service, body: Mapping[str, Any], task: Task) -> ImageCall:
    """Return the call that the fields of a body describe. Images in it are base64, or decoded already.

    Raises:
        InputError: A field is unknown or invalid.
    """
    own = {name: body[name] for name in OWN if body.get(name) is not None}
    fields = {name: value for name, value in body.items() if name not in OWN and name not in IGNORED}
    if _choice(own, "background", ("auto", "opaque", "transparent")) == "transparent":
        message = "background is transparent; the models generate opaque images. Pass auto."
        raise InputError(message, argument="background", got="transparent", expected="auto or opaque")
    if "n" in own:
        fields["num_images"] = check_int("n", own["n"], 1, service.settings.max_images)
    fields |= _size(own.get("size"))
    stream = own.get("stream", False)
    if not isinstance(stream, bool):
        raise InputError(f"stream must be true or false, got {stream!r:.40}.", argument="stream", got=stream)
    partial = check_int("partial_images", own.get("partial_images", 0), 0, MAX_PARTIAL_IMAGES)
    quality = own.get("output_compression")
    if stream and partial:
        steps = fields.get("steps", fields.get("num_inference_steps", _DEFAULT_STEPS))
        fields["preview_every"] = max(1, -(-steps // (partial + 1))) if isinstance(steps, int) else 1
    return ImageCall(
        job=await service.job_from(fields),
        task=task,
        response_format=_choice(own, "response_format", ("url", "b64_json")),
        output_format=_choice(own, "output_format", FORMATS) or "png",
        quality=None if quality is None else max(1, check_int("output_compression", quality, 0, 100)),
        stream=stream,
        partial_images=partial if stream else 0,
    )


def mask_from_alpha(image: Image.Image) -> Image.Image | None:
    """Return our mask, white where the image is generated anew, from OpenAI's, which is transparent there.

    None for an image without transparency.
    """
    if "A" not in image.getbands() and "transparency" not in image.info:
        return None
    alpha = image.convert("RGBA").getchannel("A")
    return alpha.point(lambda opacity: 255 - opacity)


def _size(size: Any) -> dict[str, int]:
    if size is None or size == "auto":
        return {}
    match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", size, re.ASCII) if isinstance(size, str) else None
    if match is None:
        expected = "auto, or WIDTHxHEIGHT such as 512x512"
        raise InputError(f"size must be {expected}, got {size!r:.40}.", argument="size", got=size, expected=expected)
    return {"width": int(match[1]), "height": int(match[2])}


def _choice(own: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> Any:
    value = own.get(name)
    if value is not None and value not in choices:
        expected = ", ".join(choices)
        message = f"{name} must be one of {expected}; got {value!r:.40}."
        raise InputError(message, argument=name, got=value, expected=expected)
    return value
