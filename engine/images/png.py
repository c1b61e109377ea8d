"""Generated images with their settings in PNG text chunks.

A `GeneratedImage` is a PIL image. Saved as PNG, it has its settings as text chunks. `settings_of` reads them, so that
Calotype can generate the same image again.
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

CHUNK = "calotype"  # the chunk that marks Calotype's settings; its value is the version that wrote them


class GeneratedImage(Image.Image):
    """A PIL image with its settings as texts in `info`, which copies and pickles preserve."""

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """Save as PIL does. A PNG gets the settings as text chunks, unless `pnginfo` is passed."""
        chunks = PngImagePlugin.PngInfo()
        for key, value in self.info.items():
            if isinstance(value, str):
                chunks.add_itxt(str(key), value)
        super().save(fp, format, **{"pnginfo": chunks, **params})


def to_unit_range(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Map the VAE's pixels to the range of 0 to 1.  # [B, 3, H, W] in about [-1, 1] -> [B, H, W, 3]"""
    return (pixels * np.float32(0.5) + np.float32(0.5)).clip(0, 1).transpose(0, 2, 3, 1)


def to_uint8(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Convert the VAE's pixels to bytes, rounded as in diffusers.  # [B, 3, H, W] in [-1, 1] -> [B, H, W, 3]"""
    rounded: NDArray[np.uint8] = np.rint(to_unit_range(pixels) * 255).astype(np.uint8)
    return rounded


def image_from_pixels(pixels: NDArray[np.uint8], settings: Mapping[str, str]) -> GeneratedImage:
    """Create one image from its bytes.  # [H, W, 3]"""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.__class__ = GeneratedImage  # PIL creates images only by factory functions: it has no constructor to call
    assert isinstance(image, GeneratedImage)
    image.info.update(settings)
    return image


def settings_of(path: Path) -> dict[str, str]:
    """Read the settings from a PNG that Calotype wrote. Raises `InputError` if it has none."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError("it is not a regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG",)) as image:  # readers of other formats may run programs
                image.load()
                chunks = {str(k): str(v) for k, v in getattr(image, "text", {}).items()}
    except Exception as error:  # for corrupt bytes Pillow raises many types
        raise InputError(f"Cannot read PNG {path} ({first_line(error)}).", got=str(path)) from None
    if CHUNK not in chunks:
        message = f"{path} has no settings: Calotype did not write it, or another program removed its text."
        raise InputError(message, got=str(path))
    return chunks
