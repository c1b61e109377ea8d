"""`Upscaler`: a loaded network that makes images larger, in tiles where the memory is short.

It pads an image that does not fit the network's sizes, and crops the result. Does not know files or prompts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..backends import LoadedComponent
from ..backends.registry import ON_GPU
from ..cuda.device import free_bytes
from ..errors import InputError
from ..errors.validation import check_float, with_known_names
from ..images.arrays import MAX_PIXELS, load_image_array, read_image, resize_image, to_bytes
from ..images.tiling import tiled
from ..system.memory import available_bytes, check_memory, peak_bytes
from .planned import PlannedUpscaler

Floats = NDArray[np.float32]

TILES = (1024, 512, 256, 128)  # sides in pixels, tried in this order if the full image does not fit
MAX_SCALE = 16
_COPIES = 3  # of the enlarged image, in float32


class Upscaler:
    """A loaded upscaler, which `load_upscaler` returns. Threads may share it."""

    scale: int
    """How many times larger the network makes each side."""

    path: Path
    """The file of the network."""

    def __init__(self, path: Path, planned: PlannedUpscaler, component: LoadedComponent) -> None:
        self.path, self.scale, self.digest = path, planned.scale, planned.digest
        self._profile, self._load = planned.profile, planned.load
        self.component = component

    @property
    def backend(self) -> str:
        """The backend that runs the network."""
        return self.component.runner.backend

    def __str__(self) -> str:
        return str(self.path)

    @with_known_names({})
    def __call__(self, image: Any, *, scale: float | None = None, tile: int | None = None) -> Image.Image:
        """Make one image larger.

        Args:
            image: A file, a PIL image, or an array [H, W, 3] or [H, W] of bytes or of floats from 0 to 1. Lanczos'
                filter enlarges its transparency.
            scale: How many times larger each side becomes, 1 to 16. The default is the network's scale; Lanczos' filter
                makes up the difference.
            tile: The side of a tile in pixels, 32 or more. By default as much at once as the free memory allows.

        Returns:
            The image, RGB or RGBA.

        Raises:
            InputError: The image, the scale or the tile is invalid, or the result is too large.
            BackendError: The backend failed.
        """
        image = read_image(Path(image), "image") if isinstance(image, (str, Path)) else image
        pixels = load_image_array("image", image)  # [H, W, 3]
        height, width = (self._target(side, scale) for side in pixels.shape[:2])
        if height * width > MAX_PIXELS:
            expected = f"at most {MAX_PIXELS / 1e6:.0f} million pixels"
            message = (
                f"the enlarged image would have {width} x {height} pixels; expected {expected}. Use a lower scale."
            )
            raise InputError(message, argument="scale", got=scale or self.scale, expected=expected)
        alpha = _alpha(image)
        floats = resize_image(pixels, *pixels.shape[:2])  # of bytes, in [0, 1]
        enlarged = to_bytes(resize_image(self.upscale_pixels(floats[None], tile)[0], height, width))
        result = Image.fromarray(enlarged)
        if alpha is not None:
            result.putalpha(alpha.resize((width, height), Image.Resampling.LANCZOS))
        return result

    def upscale_pixels(self, pixels: Floats, tile: int | None = None) -> Floats:
        """Run the network on images of one size.

        Args:
            pixels: float32 [B, H, W, 3] in [0, 1].
            tile: As in a call.

        Returns:
            float32 [B, scale H, scale W, 3] in [0, 1].

        Raises:
            InputError: The tile is invalid, or the result does not fit into the memory.
            BackendError: The backend failed.
        """
        check_memory(pixels.size * self.scale**2 * 4 * _COPIES, available_bytes())
        tile = self._tile(*pixels.shape[1:3]) if tile is None else self._checked_tile(tile)
        enlarged = [self._enlarged(each.transpose(2, 0, 1)[None], tile) for each in pixels]
        return np.concatenate(enlarged).clip(0, 1).transpose(0, 2, 3, 1)

    def _enlarged(self, image: Floats, tile: int) -> Floats:
        """Pad, run and crop one image.  # [1, 3, H, W] -> [1, 3, sH, sW]"""
        height, width = image.shape[2:]
        sides = (self._padded(height), self._padded(width))
        padding = [(0, 0), (0, 0), *((0, new - old) for new, old in zip(sides, (height, width), strict=True))]
        padded = np.pad(image, padding, mode="edge")
        larger = tiled(self._run, padded, tile, self.scale)
        return larger[:, :, : height * self.scale, : width * self.scale]

    def _run(self, image: Floats) -> Floats:
        return self.component(sample=np.ascontiguousarray(image))["enlarged"]

    def _padded(self, side: int) -> int:
        multiple = self._profile.multiple
        return max(self._profile.height.min, -(-side // multiple) * multiple)

    def _tile(self, height: int, width: int) -> int:
        """Return the side of a tile that fits into the free memory, or the longer side of an image that fits."""
        on_gpu = self.backend in ON_GPU
        free, largest = free_bytes() if on_gpu else available_bytes(), self._profile.height.max

        def has_room(tall: int, wide: int) -> bool:
            need = peak_bytes([self._load], batch=1, height=tall, width=wide, guided=False)
            return max(tall, wide) <= largest and (free is None or need <= free)

        if has_room(height, width):
            return max(self._padded(height), self._padded(width))
        return next((t for t in TILES if has_room(min(t, height), min(t, width))), TILES[-1])

    def _checked_tile(self, tile: Any) -> int:
        multiple, side = self._profile.multiple, self._profile.height
        if isinstance(tile, bool) or not isinstance(tile, int) or not max(32, side.min) <= tile <= side.max:
            expected = f"a whole number of pixels from {max(32, side.min)} to {side.max}"
            raise InputError(
                f"tile must be {expected}; got {tile!r:.80}.", argument="tile", got=tile, expected=expected
            )
        return tile // multiple * multiple

    def _target(self, side: int, scale: Any) -> int:
        factor = self.scale if scale is None else check_float("scale", scale, MAX_SCALE)
        if factor < 1:
            expected = f"a number from 1 to {MAX_SCALE}"
            message = f"scale must be {expected}, got {scale!r:.80}."
            raise InputError(message, argument="scale", got=scale, expected=expected)
        return round(side * factor)


def _alpha(image: Any) -> Image.Image | None:
    """Return the transparency of an image, or None for an opaque one."""
    if isinstance(image, Image.Image) and image.has_transparency_data:
        return ImageOps.exif_transpose(image).convert("RGBA").getchannel("A")
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 4:
        alpha = image[..., 3]
        return Image.fromarray(alpha if alpha.dtype == np.uint8 else np.rint(alpha * 255).astype(np.uint8))
    return None
