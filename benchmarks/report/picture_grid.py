"""The images of a case next to those of float32 eager, with their differences, small enough for a page.

Differences and PSNR are computed from the kept images; the shown ones are scaled down and compressed. This module does
not know HTML.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calotype.export.quality.metrics import psnr

from ..measure.record import ResultRow, RunRecord

LARGEST = 192  # pixels each way, as shown
FACTOR = 16  # shows a difference of one level of 255 as 16
GRAYS = 8  # levels of a difference map; noise with more levels does not compress


@dataclass(frozen=True, kw_only=True)
class GridImage:
    """One image and its difference to the reference, both as data URLs."""

    image: str
    difference: str = ""  # empty for the reference, and for an image of another size
    caption: str = ""  # below the map


@dataclass(frozen=True, kw_only=True)
class GridEntry:
    """The images of one contender for the first prompts."""

    contender: str
    maker: str
    status: str
    images: tuple[GridImage, ...]


def build_grid(recorded: RunRecord, rows: Sequence[ResultRow], count: int) -> tuple[GridEntry, ...]:
    """Return the reference first, then every contender with images, in the order of the run."""
    references = [_pixels(path) for path in recorded.reference(rows[0])[:count]]
    entries = [
        GridEntry(contender="float32 eager", maker="", status="reference", images=tuple(map(_reference, references)))
    ]
    for row in rows:
        images = [_pixels(path) for path in recorded.images(row)[:count]]
        shown = tuple(_shown(got, references[i] if i < len(references) else None) for i, got in enumerate(images))
        entries.append(GridEntry(contender=row.contender, maker=row.maker, status=row.status, images=shown))
    return tuple(one for one in entries if one.images)


def _pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _reference(pixels: NDArray[np.uint8]) -> GridImage:
    return GridImage(image=_image(pixels))


def _shown(got: NDArray[np.uint8], expected: NDArray[np.uint8] | None) -> GridImage:
    if expected is None:
        return GridImage(image=_image(got), caption="no reference image")
    if got.shape != expected.shape:
        size = f"{got.shape[1]} × {got.shape[0]} px, the reference {expected.shape[1]} × {expected.shape[0]}"
        return GridImage(image=_image(got), caption=size)
    decibel = psnr(got, expected, 255.0)
    return GridImage(
        image=_image(got),
        difference=_difference(got, expected),
        caption="equal" if decibel == float("inf") else f"{decibel:.1f} dB",
    )


def _small(image: Image.Image) -> Image.Image:
    if max(image.size) > LARGEST:
        image.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    return image


def _image(pixels: NDArray[np.uint8]) -> str:
    out = io.BytesIO()
    _small(Image.fromarray(pixels)).save(out, "WEBP", quality=90, method=4)
    return _address(out, "webp")


def _difference(got: NDArray[np.uint8], expected: NDArray[np.uint8]) -> str:
    """Return the largest difference of the three channels, times FACTOR; equal pixels are black."""
    far = np.abs(got.astype(np.int16) - expected.astype(np.int16)).max(axis=2) * FACTOR
    small = np.asarray(_small(Image.fromarray(np.minimum(far, 255).astype(np.uint8))))
    step = 256 // GRAYS
    # Round up, so that a small difference is not black.
    gray = Image.fromarray(((small.astype(np.int16) + step - 1) // step).clip(0, GRAYS - 1).astype(np.uint8))
    gray.putpalette([value * 255 // (GRAYS - 1) for value in range(GRAYS) for _ in range(3)])
    out = io.BytesIO()
    gray.save(out, "PNG", optimize=True)
    return _address(out, "png")


def _address(out: io.BytesIO, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"
