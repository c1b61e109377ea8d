"""The pictures of a case, side by side with float32 eager's and how far they are from it, small enough for a page.

Differences and PSNR are of the pictures as they were kept; what is shown is scaled down and pressed.
Knows nothing of HTML.
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

from ..measure.record import Recorded, Row

LARGEST = 192  # pixels each way, as shown
FACTOR = 16  # a difference of one level of 255 is shown as 16
GREYS = 8  # of a map: it is to be looked at, not measured, and noise does not press


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One picture, and its difference to the reference's; both as data addresses."""

    picture: str
    difference: str = ""  # none for the reference, and for a picture of another size
    told: str = ""  # under the map


@dataclass(frozen=True, kw_only=True)
class Hung:
    """What one contender painted of the first prompts."""

    contender: str
    maker: str
    status: str
    pictures: tuple[Shown, ...]


def hang(recorded: Recorded, rows: Sequence[Row], pictures: int) -> tuple[Hung, ...]:
    """The reference first, then every contender that left pictures, in the order of the run."""
    references = [_pixels(path) for path in recorded.reference(rows[0])[:pictures]]
    hung = [Hung(contender="float32 eager", maker="", status="reference", pictures=tuple(map(_reference, references)))]
    for row in rows:
        kept = [_pixels(path) for path in recorded.pictures(row)[:pictures]]
        shown = tuple(_shown(got, references[i] if i < len(references) else None) for i, got in enumerate(kept))
        hung.append(Hung(contender=row.contender, maker=row.maker, status=row.status, pictures=shown))
    return tuple(one for one in hung if one.pictures)


def _pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def _reference(pixels: NDArray[np.uint8]) -> Shown:
    return Shown(picture=_picture(pixels))


def _shown(got: NDArray[np.uint8], wanted: NDArray[np.uint8] | None) -> Shown:
    if wanted is None:
        return Shown(picture=_picture(got), told="no reference was kept")
    if got.shape != wanted.shape:
        size = f"{got.shape[1]} × {got.shape[0]} px, the reference {wanted.shape[1]} × {wanted.shape[0]}"
        return Shown(picture=_picture(got), told=size)
    decibel = psnr(got, wanted, 255.0)
    return Shown(
        picture=_picture(got),
        difference=_difference(got, wanted),
        told="equal" if decibel == float("inf") else f"{decibel:.1f} dB",
    )


def _small(picture: Image.Image) -> Image.Image:
    if max(picture.size) > LARGEST:
        picture.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    return picture


def _picture(pixels: NDArray[np.uint8]) -> str:
    out = io.BytesIO()
    _small(Image.fromarray(pixels)).save(out, "WEBP", quality=90, method=4)
    return _address(out, "webp")


def _difference(got: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> str:
    """The largest of the three channels' differences, times FACTOR; black is equal."""
    far = np.abs(got.astype(np.int16) - wanted.astype(np.int16)).max(axis=2) * FACTOR
    small = np.asarray(_small(Image.fromarray(np.minimum(far, 255).astype(np.uint8))))
    step = 256 // GREYS
    # Rounded up: a difference that is there is not painted black.
    grey = Image.fromarray(((small.astype(np.int16) + step - 1) // step).clip(0, GREYS - 1).astype(np.uint8))
    grey.putpalette([value * 255 // (GREYS - 1) for value in range(GREYS) for _ in range(3)])
    out = io.BytesIO()
    grey.save(out, "PNG", optimize=True)
    return _address(out, "png")


def _address(out: io.BytesIO, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"
