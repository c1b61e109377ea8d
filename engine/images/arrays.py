"""Input images: convert files, PIL images, arrays and tensors of any usual type to arrays [H, W, 3] of one size.

Handles EXIF rotation, sixteen bits and transparency. This file does not know what the images are for.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..errors import InputError, first_line

if TYPE_CHECKING:
    from torch import Tensor

ImageLike: TypeAlias = "str | Path | Image.Image | NDArray[Any] | Tensor"
Images: TypeAlias = "ImageLike | Sequence[ImageLike] | None"  # as arguments of a call
Pixels = NDArray[Any]  # uint8, or float32 in [0, 1]
Floats = NDArray[np.float32]

MAX_PIXELS = 1 << 27  # 400 MB as bytes; phone cameras reach 108 million
_EXPECTED = (
    "a file, a PIL image, an array [H, W, 3] or [H, W], or a tensor [3, H, W], of bytes or of floats from 0 to 1"
)


def load_image_array(name: str, value: Any) -> Pixels:
    """Convert one image to an array. Transparency is dropped, as in diffusers. Booleans become black and white.

    # a file, [H, W, 3], [H, W, 4] or [H, W], or a tensor [3, H, W] -> uint8, or float32 in [0, 1], [H, W, 3]

    Raises:
        InputError: The argument `name` is not an image.
    """
    value = read_image(value, name) if isinstance(value, (str, Path)) else _channels_last(value)
    wide = isinstance(value, Image.Image) and value.mode[0] == "I"
    if isinstance(value, Image.Image):
        image = ImageOps.exif_transpose(value)
        # A conversion would clip modes of more than eight bits at 255: read their numbers instead.
        value = np.asarray(image if image.mode[0] in "IF" else image.convert("RGB"))
    if not isinstance(value, np.ndarray):
        raise _invalid(name, type(value).__name__)
    if value.ndim == 4 and len(value) == 1 and value.shape[-1] in (1, 3, 4):
        value = value[0]
    if value.ndim == 2 or (value.ndim == 3 and value.shape[-1] == 1):
        value = value.reshape(*value.shape[:2], 1).repeat(3, axis=-1)
    if value.ndim != 3 or value.shape[-1] not in (3, 4) or 0 in value.shape:
        hint = " Put the channels last." if value.ndim == 3 and value.shape[0] in (1, 3, 4) else ""
        raise _invalid(name, f"an array of shape {list(value.shape)}", hint)
    if value.dtype == np.bool_:
        value = value.astype(np.uint8) * np.uint8(255)
    pixels: Pixels = value[..., :3]
    if pixels.dtype == np.uint16 or wide:
        pixels = pixels / 65535  # sixteen bits, which PIL also stores in wider integers
    elif pixels.dtype.kind in "iu" and pixels.min() >= 0 and pixels.max() <= 255:
        pixels = pixels.astype(np.uint8)  # bytes in numpy's usual integers
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind != "f" or not (pixels.min() >= 0 and pixels.max() <= 1):  # a NaN is not >= 0
        low, high = pixels.min(), pixels.max()
        hint = " Scale them to 0 to 1." if pixels.dtype.kind in "iuf" and np.isfinite([low, high]).all() else ""
        raise _invalid(name, f"{pixels.dtype} from {low} to {high}", hint)
    return pixels.astype(np.float32)


def _invalid(name: str, got: str, hint: str = "") -> InputError:
    message = f"Invalid {name}: got {got}; expected {_EXPECTED}.{hint}"
    return InputError(message, argument=name, got=got, expected=_EXPECTED)


def to_bytes(pixels: Pixels) -> NDArray[np.uint8]:
    """Return pixels as bytes.  # uint8, or float32 in [0, 1], [H, W, 3] -> uint8 [H, W, 3]"""
    return pixels if pixels.dtype == np.uint8 else np.rint(pixels * 255).astype(np.uint8)


def to_array(value: Any) -> Any:
    """Return a tensor of torch as an array; anything else unchanged. The caller of a tensor has imported torch."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return value
    tensor = value.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _channels_last(value: Any) -> Any:
    """Return images in a tensor as an array with the channels last; anything else unchanged.

    # [C, H, W] or [B, C, H, W] -> [H, W, C] or [B, H, W, C]; [H, W], and what can only be [H, W, C], keep their order
    """
    array = to_array(value)
    if array is value or array.ndim not in (3, 4):
        return array
    last = array.shape[-1] in (1, 3, 4) and array.shape[-3] not in (1, 3, 4)
    return array if last else np.moveaxis(array, -3, -1)


def read_image(path: str | Path, argument: str = "image") -> Image.Image:
    """Read an image file. Raises `InputError` if it is not an image, or has more than `MAX_PIXELS`."""
    if str(path).lower().startswith(("http:/", "https:/", "data:")):  # `Path` drops a slash
        raise InputError(
            f"Cannot read {argument} {str(path)[:200]}: it is a URL. Download it first, and pass the file.",
            argument=argument,
            got=str(path)[:200],
        )
    expected = f"at most {MAX_PIXELS / 1e6:.0f} million"
    size = "too many"
    try:
        with warnings.catch_warnings():  # Pillow warns at half of its limit; `MAX_PIXELS` replaces that warning
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(Path(path).expanduser())  # reads only the header
        with opened as image:
            size = f"{image.width} x {image.height}"
            if image.width * image.height <= MAX_PIXELS:
                image.load()
                return image
    except Image.DecompressionBombError:
        pass
    except (OSError, ValueError, SyntaxError, RuntimeError) as error:
        raise InputError(
            f"Cannot read {argument} {path} ({first_line(error)}).", argument=argument, got=str(path)
        ) from None
    message = f"Cannot read {argument} {path}: it has {size} pixels; {expected} are supported. Scale it down first."
    raise InputError(message, argument=argument, got=size, expected=expected)


def load_mask_array(value: Any, name: str = "mask_image") -> Pixels:
    """Convert one image or mask to gray by luminance; see `load_image_array`.

    # -> [H, W, 3], three equal channels
    """
    pixels: Pixels = load_image_array(name, value)
    if (pixels[..., :1] == pixels).all():
        return pixels
    luminance = pixels @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as in PIL
    is_bytes = pixels.dtype == np.uint8
    gray: Pixels = np.rint(luminance).astype(np.uint8) if is_bytes else luminance.clip(0, 1).astype(np.float32)
    return gray[..., None].repeat(3, axis=-1)


def resize_image(pixels: Pixels, height: int, width: int) -> NDArray[np.float32]:
    """Resize with Lanczos' filter, as diffusers resizes control images. Bytes are resized as bytes.

    # uint8, or float32 in [0, 1], [H, W, 3] -> float32 [height, width, 3]
    """
    if pixels.shape[:2] != (height, width):
        planes = [Image.fromarray(np.ascontiguousarray(pixels[..., i])) for i in range(3)]
        resized = [np.asarray(p.resize((width, height), Image.Resampling.LANCZOS)) for p in planes]
        pixels = np.stack(resized, axis=-1)
    return pixels.astype(np.float32) / np.float32(255) if pixels.dtype == np.uint8 else pixels.clip(0, 1)


def as_list(images: Any) -> list[Any]:
    """Return a list of one image, or of several in a list or along the first axis of an array or a tensor."""
    images = _channels_last(images)
    several = isinstance(images, (list, tuple)) or (isinstance(images, np.ndarray) and images.ndim == 4)
    return list(images) if several else [images]


def batch(images: Sequence[Pixels], count: int, height: int, width: int) -> Floats:
    """Resize images and repeat them to a batch.  # n x [H, W, 3] -> [count, 3, height, width]"""
    planes = np.stack([resize_image(image, height, width).transpose(2, 0, 1) for image in images])
    return planes.repeat(count // len(images), axis=0)
