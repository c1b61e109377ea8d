"""Images resampled as torch's bicubic interpolation does, and as CLIP's image processor does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .arrays import Floats, Pixels, to_bytes


def bicubic_matrix(size: int, target: int) -> NDArray[np.float64]:
    """Return the matrix of torch's bicubic interpolation along one axis, without antialiasing.  # [target, size]"""
    return _bicubic_at((np.arange(target) + 0.5) * size / target - 0.5, size)


def _bicubic_at(places: NDArray[Any], size: int) -> NDArray[np.float64]:
    """Return the weights of an axis of `size` for bicubic values at these places.  # [n] -> [n, size]"""
    first, target = np.floor(places), len(places)
    matrix = np.zeros((target, size))
    for tap in range(-1, 3):
        x = np.abs(places - first - tap)
        near, far = (1.25 * x - 2.25) * x * x + 1, ((-0.75 * x + 3.75) * x - 6) * x + 3  # a = -0.75 (Keys 1981)
        weights = np.where(x <= 1, near, far)
        np.add.at(matrix, (np.arange(target), np.clip(first + tap, 0, size - 1).astype(int)), weights)
    return matrix


def resize_bicubic(planes: Floats, height: int, width: int) -> Floats:
    """Resize planes as torch's bicubic interpolation does.  # [..., H, W] -> float32 [..., height, width]"""
    rows, columns = bicubic_matrix(planes.shape[-2], height), bicubic_matrix(planes.shape[-1], width)
    return np.asarray(rows @ planes.astype(np.float64) @ columns.T, dtype=np.float32)


def vision_crop(pixels: Pixels, shortest: int, side: int, mean: Sequence[float], std: Sequence[float]) -> Floats:
    """Resize the shorter side to `shortest`, crop the middle, and scale the colors, as CLIP's processor does.

    # uint8, or float32 in [0, 1], [H, W, 3] -> float32 [3, side, side]
    """
    pixels = to_bytes(pixels)
    height, width = pixels.shape[:2]
    size = [shortest * each // min(height, width) for each in (width, height)]
    resized = np.asarray(Image.fromarray(pixels).resize((size[0], size[1]), Image.Resampling.BICUBIC))
    top, left = ((each - side) // 2 for each in resized.shape[:2])
    crop = resized[top : top + side, left : left + side].astype(np.float32) / np.float32(255)
    normalized = (crop - np.array(mean, np.float32)) / np.array(std, np.float32)
    return np.ascontiguousarray(normalized.transpose(2, 0, 1), dtype=np.float32)


def vision_squeeze(pixels: Pixels, side: int, mean: Sequence[float], std: Sequence[float]) -> Floats:
    """Resize both sides to `side` without a crop, and scale the colors, as diffusers' Stable Video Diffusion does.

    It blurs by how much the image shrinks, and then interpolates between the corners.

    # uint8, or float32 in [0, 1], [H, W, 3] -> float32 [3, side, side]
    """
    planes = pixels.astype(np.float64).transpose(2, 0, 1) / (255 if pixels.dtype == np.uint8 else 1)
    rows, columns = (_squeeze_matrix(size, side) for size in planes.shape[1:])
    resized = (rows @ (2 * planes - 1) @ columns.T + 1) / 2
    scaled = (resized - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
    return np.ascontiguousarray(scaled, dtype=np.float32)


def _squeeze_matrix(size: int, target: int) -> NDArray[np.float64]:
    """Return the matrix of a Gaussian blur, reflected at the ends, and torch's bicubic interpolation between corners.

    # [target, size]
    """
    corners = _bicubic_at(np.arange(target, dtype=np.float64) * ((size - 1) / max(target - 1, 1)), size)
    rows, columns = np.nonzero(corners)
    sigma = max((size / target - 1) / 2, 0.001)
    half = int(max(4 * sigma, 3)) // 2  # an even number of taps gets one more
    taps = np.arange(-half, half + 1)
    weights = np.exp(-(taps.astype(np.float64) ** 2) / (2 * sigma**2))
    matrix, last = np.zeros((target, size)), max(size - 1, 1)
    for tap, weight in zip(taps, weights / weights.sum(), strict=True):
        places = np.abs(columns + tap) % (2 * last)
        np.add.at(matrix, (rows, np.minimum(places, 2 * last - places) % size), weight * corners[rows, columns])
    return matrix
