"""Files that the command line writes: their suffix and name are checked before the work, and errors name the file."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, first_line

if TYPE_CHECKING:
    from PIL import Image

_LOSSY = (".jpg", ".jpeg", ".webp")
SUFFIXES = (".png", *_LOSSY)
QUALITY = 95  # of a JPEG or a WebP, from 1 to 100
MOVIES = (".mp4", ".webm")  # of clips, by PyAV


def check_output(path: Path, quality: int | None) -> None:
    """Raise `InputError` before the work if the image cannot be written."""
    try:
        fault = _fault(path)
    except OSError as failed:  # a folder without read permission, a name that is too long
        fault = f"cannot write {path}: {failed.strerror}."
    if fault:
        raise InputError(fault, argument="output")
    if quality is not None and path.suffix.lower() not in _LOSSY:
        message = f"--image-quality is for .jpg and .webp, and {path} keeps every pixel. Omit it."
        raise InputError(message, argument="image_quality", got=quality)


def _fault(path: Path) -> str | None:
    if path.suffix.lower() not in SUFFIXES:
        return f"cannot write {path}: images are written as {', '.join(SUFFIXES)}."
    return folder_fault(path)


def folder_fault(path: Path) -> str | None:
    """Return why a file cannot be written at this place, or None."""
    if path.is_dir():
        return f"cannot write {path}: it is a folder. Pass the name of a file."
    if not path.parent.is_dir():
        return f"cannot write {path}: there is no folder {path.parent}. Create it first."
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        return f"cannot write {path}: Permission denied."
    return None


def is_clip_only(path: Path) -> bool:
    """Return whether the suffix is that of clips, and not of images."""
    return path.suffix.lower() in (*MOVIES, ".gif")


def write(image: Image.Image, path: Path, quality: int | None) -> None:
    """Write an image in the format of the suffix. Raises `InputError`."""
    options: dict[str, Any] = {"quality": quality or QUALITY} if path.suffix.lower() in _LOSSY else {}
    try:
        image.save(path, **options)
    except (OSError, ValueError) as failed:  # ValueError: the format has no images of this size
        reason = getattr(failed, "strerror", None) or first_line(failed)
        raise InputError(f"cannot write {path}: {reason}.", argument="output") from None


def contact_sheet(images: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Return one image with all images in rows, in cells of the largest, on white.

    `columns` is the number of images in a row; None makes the sheet about square.
    """
    from PIL import Image

    columns = columns or math.ceil(math.sqrt(len(images)))
    width, height = (max(image.size[i] for image in images) for i in (0, 1))
    sheet = Image.new("RGB", (columns * width, math.ceil(len(images) / columns) * height), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * width, i // columns * height))
    return sheet
