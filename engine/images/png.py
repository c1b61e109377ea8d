"""Generated images with their settings in PNG text chunks, or in the EXIF data of a JPEG or a WebP.

A `GeneratedImage` is a PIL image. Saved, it contains its settings. `settings_of` reads them, so that Calotype can
generate the same image again.
"""

from __future__ import annotations

import json
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


PARAMETERS = "parameters"  # the chunk that AUTOMATIC1111's web UI writes and reads
_EXIF, _COMMENT, _MAKER_NOTE, _SOFTWARE = 0x8769, 0x9286, 0x927C, 0x0131  # tags of EXIF 2.32
_UNICODE = b"UNICODE\0"
_JPEG_BYTES = 65_000  # of EXIF; a JPEG holds no more in one segment
_LONGEST_TEXT = 1 << 20


class GeneratedImage(Image.Image):
    """A PIL image with its settings as texts in `info`, which copies and pickles preserve."""

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """Save as PIL does, with the settings: text chunks in a PNG, and EXIF in a JPEG or a WebP.

        `pnginfo` or `exif` replaces them. Settings that a JPEG is too small for are left out, with a warning.
        """
        texts = {str(key): value for key, value in self.info.items() if isinstance(value, str)}
        suffix = Path(name).suffix.lower() if isinstance(name := getattr(fp, "name", fp), (str, Path)) else ""
        kind = (format or Image.registered_extensions().get(suffix, "")).upper()
        if kind in ("JPEG", "WEBP") and texts:
            exif = _exif_of(texts)
            if kind == "WEBP" or len(exif) < _JPEG_BYTES:
                params = {"exif": exif, **params}
            elif "exif" not in params:
                warnings.warn("the settings are too long for a JPEG and were left out; save a PNG", stacklevel=2)
        chunks = PngImagePlugin.PngInfo()
        for key, value in texts.items():
            (chunks.add_text if key == PARAMETERS else chunks.add_itxt)(key, value)
        super().save(fp, format, **{"pnginfo": chunks, **params})


def _exif_of(texts: Mapping[str, str]) -> bytes:
    """Return EXIF data with the settings as a maker note, and AUTOMATIC1111's text as the user's comment."""
    exif = Image.Exif()
    exif[_SOFTWARE] = f"{CHUNK} {texts.get(CHUNK, '')}".strip()
    inner = exif.get_ifd(_EXIF)
    if PARAMETERS in texts:
        inner[_COMMENT] = _UNICODE + texts[PARAMETERS].encode("utf-16-be")
    own = {key: value for key, value in texts.items() if key != PARAMETERS}
    inner[_MAKER_NOTE] = CHUNK.encode() + b"\0" + json.dumps(own).encode()
    data: bytes = exif.tobytes()
    return data


def texts_of(image: Image.Image) -> dict[str, str]:
    """Return the texts of a PNG, or those that `_exif_of` or AUTOMATIC1111 wrote."""
    if isinstance(image, PngImagePlugin.PngImageFile):
        return {str(key): str(value) for key, value in image.text.items()}
    inner, texts = image.getexif().get_ifd(_EXIF), {}
    note, comment = inner.get(_MAKER_NOTE), inner.get(_COMMENT)
    if isinstance(note, bytes) and note.startswith(CHUNK.encode() + b"\0"):
        own = json.loads(note[len(CHUNK) + 1 :])
        texts = {key: str(value) for key, value in own.items()}
    if isinstance(comment, bytes) and comment.startswith(_UNICODE):
        texts[PARAMETERS] = comment[len(_UNICODE) :].decode("utf-16-be", "replace")
    return texts


def to_unit_range(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Map the VAE's pixels to the range of 0 to 1.  # [..., 3, H, W] in about [-1, 1] -> [..., H, W, 3]"""
    return np.moveaxis((pixels * np.float32(0.5) + np.float32(0.5)).clip(0, 1), -3, -1)


def to_uint8(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Convert the VAE's pixels to bytes, rounded as in diffusers.  # [..., 3, H, W] in [-1, 1] -> [..., H, W, 3]"""
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
    """Read the settings from a PNG, JPEG or WebP of Calotype, or AUTOMATIC1111's text under the key `PARAMETERS`.

    Raises `InputError` if it has neither.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError("it is not a regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:  # readers of others may run programs
                image.load()
                texts = texts_of(image)
    except Exception as error:  # for corrupt bytes Pillow raises many types
        raise InputError(f"Cannot read image {path} ({first_line(error)}).", got=str(path)) from None
    if CHUNK not in texts and PARAMETERS not in texts:
        message = f"{path} has no settings: no known program wrote it, or another program removed its text."
        raise InputError(message, got=str(path))
    if (length := max(map(len, texts.values()))) > _LONGEST_TEXT:
        message = f"Cannot read image {path}: a text in it has {length} characters; at most {_LONGEST_TEXT} are read."
        raise InputError(message, got=length)
    return texts
