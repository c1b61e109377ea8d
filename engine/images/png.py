"""Pixels to PIL pictures that remember how they were made.

A `GeneratedImage` is a PIL image; saved as PNG it carries its settings as text chunks, from which `settings_of` reads
them back, so that the same picture can be made again.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from ..errors import InputError, first_line

CHUNK = "calotype"  # the chunk that says the others are ours; its value is the version that wrote them


class GeneratedImage(Image.Image):
    """A PIL image whose settings are the texts in its `info`, which copies and pickles keep."""

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """As PIL's `save`; a PNG gets the settings as text chunks, unless `pnginfo` is given."""
        chunks = PngImagePlugin.PngInfo()
        for key, value in self.info.items():
            if isinstance(value, str):
                chunks.add_itxt(str(key), value)
        super().save(fp, format, **{"pnginfo": chunks, **params})


def to_unit_range(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The autoencoder's pixels to the range of 0 to 1.  # [B, 3, H, W] in about [-1, 1] -> [B, H, W, 3]"""
    return (pixels * np.float32(0.5) + np.float32(0.5)).clip(0, 1).transpose(0, 2, 3, 1)


def to_uint8(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The autoencoder's pixels to bytes, rounded as diffusers rounds.  # [B, 3, H, W] in [-1, 1] -> [B, H, W, 3]"""
    rounded: NDArray[np.uint8] = np.rint(to_unit_range(pixels) * 255).astype(np.uint8)
    return rounded


def image_from_pixels(pixels: NDArray[np.uint8], settings: Mapping[str, str]) -> GeneratedImage:
    """One picture from its bytes.  # [H, W, 3]"""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.__class__ = GeneratedImage  # PIL makes images by factory functions alone: there is no constructor to call
    assert isinstance(image, GeneratedImage)
    image.info.update(settings)
    return image


def settings_of(path: Path) -> dict[str, str]:
    """The settings in a PNG that Calotype wrote. Raises `InputError` where there are none."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError("it is not a regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG",)) as image:  # readers of other formats may run programs
                image.load()
                chunks = {str(k): str(v) for k, v in getattr(image, "text", {}).items()}
    except Exception as broken:  # damaged bytes make Pillow raise all sorts
        raise InputError(f"{path} cannot be read as a PNG ({first_line(broken)}).") from None
    if CHUNK not in chunks:
        raise InputError(f"{path} does not say how it was made: it is no PNG that Calotype wrote, or lost its text.")
    return chunks
