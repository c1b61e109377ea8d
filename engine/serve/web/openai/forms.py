"""Multipart forms: their text as values of a body's fields, and their files as images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from anyio import to_thread
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.requests import Request

from ....request.diffusers_names import ALIASES
from ..service import HTTPError, Service
from ..service.arguments import FIELDS

MAX_FILES, MAX_FIELDS, MAX_FIELD_BYTES = 16, 100, 1 << 20
_TEXT = ("text", "texts")
_NUMBERS = ("n", "output_compression", "partial_images", "priority", "timeout_s", "preview_every")


async def form_body(service: Service, http: Request) -> dict[str, Any]:
    """Return a form as a body: text as numbers and truth values where fields are such, and files as PIL images.

    A field that ends with [], or occurs several times, is a list.

    Raises:
        HTTPError: The body is no multipart form.
        InputError: A file is not an image.
    """
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        message = f"the body is {kind or 'of no type'!r:.80}; expected Content-Type: multipart/form-data."
        raise HTTPError(message, status=415, code="content_type")
    body: dict[str, Any] = {}
    async with http.form(max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES) as form:
        for key, part in form.multi_items():
            name = key.removesuffix("[]")
            value = await _image(service, name, part) if isinstance(part, UploadFile) else _value(name, part)
            body[name] = [*_listed(body[name]), value] if name in body else value
    return body


async def _image(service: Service, name: str, part: UploadFile) -> Image.Image:
    data = await part.read()
    return await to_thread.run_sync(service.image_from_bytes, data, name)


def _value(name: str, text: str) -> Any:
    """Return the value of a text, which is JSON unless its field takes text."""
    field = ALIASES[name].name if name in ALIASES else name
    if FIELDS.get(field, "text") in _TEXT and name not in (*_NUMBERS, "stream", "loras"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # which the check of its field names


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def single(body: Mapping[str, Any], name: str) -> Any:
    """Return the only value of a field, or None. Raises `HTTPError` for several."""
    values = _listed(body.get(name))
    if len(values) > 1:
        raise HTTPError(f"{name} has {len(values)} images; the models take one.", code="InputError")
    return values[0]
