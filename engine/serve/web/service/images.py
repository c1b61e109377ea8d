"""Input images of clients, which are checked before they are decoded, and images for clients.

Only bytes are read: text is base64 or a data URL. A file's path, and an address, are refused and never opened.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import warnings
from dataclasses import replace
from pathlib import PurePath
from typing import Any, Literal

import numpy as np
from PIL import Image

from ....errors import InputError, first_line
from ....images.png import image_from_pixels
from ....report.report import Report

Format = Literal["png", "jpeg", "webp"]
FORMATS: tuple[Format, ...] = ("png", "jpeg", "webp")
_READ = ("PNG", "JPEG", "WEBP")  # decoders of other formats are rarely used, and have had more faults
_SCHEMES = ("http:", "https:", "file:", "ftp:")
PREVIEW_SIDE = 512


def image_from_bytes(data: bytes, max_pixels: int, argument: str = "image") -> Image.Image:
    """Return a decoded image.

    Raises:
        InputError: The bytes are not a PNG, JPEG or WebP, or it has more pixels than `max_pixels`.
    """
    expected = "a PNG, JPEG or WebP"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened = Image.open(io.BytesIO(data), formats=_READ)  # reads the header alone
            size = f"{opened.width} x {opened.height}"
            small_enough = opened.width * opened.height <= max_pixels
            if small_enough:
                opened.load()
                return opened
    except Exception as error:  # for corrupt bytes Pillow raises many types
        message = f"cannot read {argument} ({first_line(error)}); expected {expected}."
        raise InputError(message, argument=argument, expected=expected) from None
    expected = f"at most {max_pixels} pixels"
    raise InputError(f"{argument} has {size} pixels; expected {expected}.", argument=argument, expected=expected)


def image_from_base64(text: Any, max_pixels: int, argument: str = "image") -> Image.Image:
    """Return an image from base64 or a data URL. Raises `InputError`, also for addresses, which are never read."""
    expected = "base64 or a data URL of a PNG, JPEG or WebP"
    if isinstance(text, Image.Image):  # a file of a form
        return text
    if not isinstance(text, str) or text[:6].lower().startswith(_SCHEMES):
        message = f"{argument} is {text!r:.40}; expected {expected}. The server opens no addresses and files."
        raise InputError(message, argument=argument, expected=expected)
    head, comma, _ = text[:100].partition(",")
    encoded = text[len(head) + 1 :] if comma and head.lower().startswith("data:") else text
    try:
        data = base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        message = f"{argument} is not base64: {text!r:.40}; expected {expected}."
        raise InputError(message, argument=argument, expected=expected) from None
    return image_from_bytes(data, max_pixels, argument)


def encoded_image(image: Image.Image, kind: Format = "png", quality: int | None = None) -> bytes:
    """Return the bytes of a file. A generated image keeps its settings inside, without the server's folders."""
    if "model" in image.info:
        texts = {str(key): text for key, text in image.info.items() if isinstance(text, str)}
        texts["model"] = public_name(texts["model"])
        if "loras" in texts:
            loras = [[public_name(file), *rest] for file, *rest in json.loads(texts["loras"])]
            texts["loras"] = json.dumps(loras)
        image = image_from_pixels(np.asarray(image), texts)
    stream = io.BytesIO()
    with warnings.catch_warnings():  # of settings that are too long for a JPEG, which are left out
        warnings.simplefilter("ignore")
        image.save(stream, kind.upper(), **({} if quality is None or kind == "png" else {"quality": quality}))
    return stream.getvalue()


def as_base64(image: Image.Image) -> str:
    """Return the bytes of a PNG as base64."""
    return base64.b64encode(encoded_image(image)).decode()


def preview_url(image: Image.Image) -> str:
    """Return a small JPEG of an image as a data URL."""
    small = Image.new("RGB", image.size)
    small.paste(image)
    small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    return "data:image/jpeg;base64," + base64.b64encode(encoded_image(small, "jpeg", 80)).decode()


def public_report(report: Report) -> Report:
    """Return a report without the server's folders."""
    loras = tuple((public_name(file), weight) for file, weight in report.loras)
    return replace(report, model=public_name(report.model), loras=loras)


def public_name(model: str) -> str:
    """Return the name of a file without its folder; another name, such as that of a model of the hub, as it is."""
    path = PurePath(model)
    return path.name if path.is_absolute() else model
