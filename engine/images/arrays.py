"""Pictures that come in: PIL images and arrays of any usual kind become arrays [H, W, 3] of one size.

Knows files' habits (rotation by EXIF, sixteen bits, transparency); knows nothing of what the pictures are for.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..errors import InputError

Pixels = NDArray[Any]  # uint8, or float32 in [0, 1]
Floats = NDArray[np.float32]

_MAX_PIXELS = 1 << 27  # 400 MB as bytes; cameras of phones make 108 million
_KINDS = "a PIL image, or an array [H, W, 3] or [H, W] of bytes or of floats from 0 to 1"


def load_image_array(name: str, given: Any) -> Pixels:
    """One picture; transparency is left out, as diffusers leaves it. Raises `InputError` naming the argument.

    Truth values, which edges and masks often are, become black and white.

    # [H, W, 3], [H, W, 4] or [H, W] -> uint8, or float32 in [0, 1], [H, W, 3]
    """
    wide = isinstance(given, Image.Image) and given.mode[0] == "I"
    if isinstance(given, Image.Image):
        image = ImageOps.exif_transpose(given)
        # Modes of more than eight bits would be cut off at 255 by a conversion: they are read as the numbers they are.
        given = np.asarray(image if image.mode[0] in "IF" else image.convert("RGB"))
    if not isinstance(given, np.ndarray):
        raise InputError(f"{name} takes {_KINDS}; got {type(given).__name__}.")
    if given.ndim == 2 or (given.ndim == 3 and given.shape[-1] == 1):
        given = given.reshape(*given.shape[:2], 1).repeat(3, axis=-1)
    if given.ndim != 3 or given.shape[-1] not in (3, 4) or 0 in given.shape:
        turn = "; put its channels last" if given.ndim == 3 and given.shape[0] in (1, 3, 4) else ""
        raise InputError(f"{name} takes {_KINDS}; got an array of shape {list(given.shape)}{turn}.")
    if given.dtype == np.bool_:
        given = given.astype(np.uint8) * np.uint8(255)
    pixels: Pixels = given[..., :3]
    if pixels.dtype == np.uint16 or wide:
        pixels = pixels / 65535  # sixteen bits, which PIL keeps in wider integers too
    elif pixels.dtype.kind in "iu" and pixels.min() >= 0 and pixels.max() <= 255:
        pixels = pixels.astype(np.uint8)  # bytes in numpy's usual integers
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind != "f" or not (pixels.min() >= 0 and pixels.max() <= 1):  # a NaN is not >= 0
        low, high = pixels.min(), pixels.max()
        scale = "; bring them to 0 to 1 first" if pixels.dtype.kind in "iuf" and np.isfinite([low, high]).all() else ""
        raise InputError(f"{name} takes {_KINDS}; got {pixels.dtype} from {low} to {high}{scale}.")
    return pixels.astype(np.float32)


def read_image(path: Path) -> Image.Image:
    """A picture from a file. Raises `InputError` where it is none, or has more than `_MAX_PIXELS`."""
    try:
        with _opened(path) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise InputError(
                    f"{path} is {image.width} x {image.height} pixels; at most {_MAX_PIXELS / 1e6:.0f} million are "
                    "read. Scale it down first."
                )
            image.load()
            return image
    except Image.DecompressionBombError:
        raise InputError(
            f"{path} has far more than the {_MAX_PIXELS / 1e6:.0f} million pixels that are read. Scale it down first."
        ) from None
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError) as broken:
        raise InputError(f"{path} cannot be read as a picture ({broken}).") from None


def _opened(path: Path) -> Image.Image:
    """Opened by its header alone. Pillow warns of pictures above half of its limit: ours is held to instead."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path)


def load_mask_array(given: Any) -> Pixels:
    """One mask, as `load_image_array` reads pictures. Weighed to grey by luminance.

    # -> [H, W, 3], the same three times
    """
    pixels: Pixels = load_image_array("mask_image", given)
    if (pixels[..., :1] == pixels).all():
        return pixels
    weighed = pixels @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as PIL's
    whole = pixels.dtype == np.uint8
    grey: Pixels = np.rint(weighed).astype(np.uint8) if whole else weighed.clip(0, 1).astype(np.float32)
    return grey[..., None].repeat(3, axis=-1)


def resize_image(pixels: Pixels, height: int, width: int) -> NDArray[np.float32]:
    """Resized by Lanczos' filter, as diffusers resizes control pictures: bytes as bytes.

    # uint8, or float32 in [0, 1], [H, W, 3] -> float32 [height, width, 3]
    """
    if pixels.shape[:2] != (height, width):
        planes = [Image.fromarray(np.ascontiguousarray(pixels[..., i])) for i in range(3)]
        resized = [np.asarray(p.resize((width, height), Image.Resampling.LANCZOS)) for p in planes]
        pixels = np.stack(resized, axis=-1)
    return pixels.astype(np.float32) / np.float32(255) if pixels.dtype == np.uint8 else pixels.clip(0, 1)


def as_list(pictures: Any) -> list[Any]:
    """One picture, or several in a list or along the first axis of an array."""
    several = isinstance(pictures, (list, tuple)) or (isinstance(pictures, np.ndarray) and pictures.ndim == 4)
    return list(pictures) if several else [pictures]


def batch(pictures: Sequence[Pixels], count: int, height: int, width: int) -> Floats:
    """A picture for each of the batch, resized.  # n x [H, W, 3] -> [count, 3, height, width]"""
    planes = np.stack([resize_image(p, height, width).transpose(2, 0, 1) for p in pictures])
    return planes.repeat(count // len(pictures), axis=0)
