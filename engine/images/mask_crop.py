"""Inpainting of the area around a mask: cut it out, and lay the result over the original image.

The areas and sizes are those of diffusers' `padding_mask_crop`, which has them from AUTOMATIC1111's "only masked".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .arrays import Pixels, to_bytes

Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskCrop:
    """An image, its mask, and the area that is generated.

    Attributes:
        image, mask: of the original size.
        box: the area.
    """

    image: Image.Image
    mask: Image.Image
    box: Box

    def cut(self, image: Image.Image, height: int, width: int) -> Pixels:
        """Cut the area out of the image or the mask, and scale it to fit.  # -> uint8 [height, width, 3]"""
        return np.asarray(scaled_into(image.crop(self.box), width, height))

    def overlay(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Lay generated pixels over the original image where its mask is white.  # [h, w, 3] -> [H, W, 3]"""
        left, top, right, bottom = self.box
        preserved: Any = Image.new("RGBa", self.image.size)
        preserved.paste(self.image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(self.mask))
        canvas = Image.new("RGBA", self.image.size)
        canvas.paste(scaled_over(Image.fromarray(pixels), right - left, bottom - top), (left, top))
        result = canvas.convert("RGB").convert("RGBA")
        result.alpha_composite(preserved.convert("RGBA"))
        return np.asarray(result.convert("RGB"))


def mask_crop(image: Pixels, mask: Pixels, *, padding: int, height: int, width: int) -> MaskCrop | None:
    """Choose the area around the white part of a mask, in the shape of the output; None if the mask is black.

    Args:
        image, mask: of one size, or the mask is scaled to the image's.  # [H, W, 3]
        padding: pixels around the white part.
        height, width: the size of the output.
    """
    original = Image.fromarray(to_bytes(image))
    gray = Image.fromarray(to_bytes(mask)).convert("L")
    gray = gray if gray.size == original.size else gray.resize(original.size)
    rows, columns = (np.flatnonzero(np.asarray(gray).any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return None
    left, right = _widened(columns, padding, gray.width)
    top, bottom = _widened(rows, padding, gray.height)
    if (right - left) / (bottom - top) > width / height:
        top, bottom = _grown(top, bottom, int((right - left) / (width / height)), gray.height)
    else:
        left, right = _grown(left, right, int((bottom - top) * (width / height)), gray.width)
    return MaskCrop(image=original, mask=gray, box=(left, top, right, bottom))


def _widened(places: NDArray[np.int64], padding: int, size: int) -> tuple[int, int]:
    return max(int(places[0]) - padding, 0), min(int(places[-1]) + 1 + padding, size)


def _grown(start: int, end: int, length: int, size: int) -> tuple[int, int]:
    """Grow a range to a length around its middle, and shift it into the image, which may be smaller."""
    more = length - (end - start)
    start, end = start - more // 2, end + more - more // 2
    if end >= size:
        start, end = start - (end - size), size
    if start < 0:
        start, end = 0, end - start
    return start, min(end, size)


def scaled_into(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scale an image into a size, and repeat its edges around it."""
    ratio, own = width / height, image.width / image.height
    wide = width if ratio < own else image.width * height // image.height
    tall = height if ratio >= own else image.height * width // image.width
    scaled = image.resize((max(wide, 1), max(tall, 1)), Image.Resampling.LANCZOS)
    result = Image.new("RGB", (width, height))
    left, top = width // 2 - wide // 2, height // 2 - tall // 2
    result.paste(scaled, (left, top))
    if ratio < own and top > 0:
        result.paste(scaled.resize((width, top), box=(0, 0, width, 0)), (0, 0))
        result.paste(scaled.resize((width, top), box=(0, tall, width, tall)), (0, top + tall))
    elif ratio > own and left > 0:
        result.paste(scaled.resize((left, height), box=(0, 0, 0, height)), (0, 0))
        result.paste(scaled.resize((left, height), box=(wide, 0, wide, height)), (left + wide, 0))
    return result


def scaled_over(
    image: Image.Image, width: int, height: int, resampling: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """Scale an image over a size, and cut off what is beyond."""
    ratio, own = width / height, image.width / image.height
    wide = width if ratio > own else image.width * height // image.height
    tall = height if ratio <= own else image.height * width // image.width
    result = Image.new("RGB", (width, height))
    scaled = image.resize((max(wide, 1), max(tall, 1)), resampling)
    result.paste(scaled, (width // 2 - wide // 2, height // 2 - tall // 2))
    return result
