"""Detect what an image shows: its background, and the color, shape, position and radius of each thing.

Detection uses only rules. A pixel belongs to a thing if it is nearer to a thing's color than to the background;
connected pixels are one thing; its color is the median of its core, and `likeness` classifies its shape. The rules
allow for generated images, with soft edges, tints, noise and specks. This module does not know captions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from . import likeness, scenes

COLOR_REACH = 0.15  # Oklab; a color farther than this from every name has no name (two names are at least 0.18 apart)
PLAIN_SHARE = 0.9  # share of the frame that must have the background's color
PURE_SHARE = 0.8  # share of a thing that must have the thing's color
MIXED = 60.0  # sRGB steps; a color farther than this from every mixture of thing and background is another color
HOLE_SHARE = 0.08  # of a thing's filled area: only a ring has a larger hole (34 % as drawn)

# In pixels.
FRAME = 3  # the border that no thing reaches
SPECK = 25  # the smallest area of a thing's core; smaller regions are dirt
EDGE = 6  # width of the area around a thing that may contain its blurred edge
DEPTH = 4.0  # from this depth, the edge does not affect a thing's color

Array = NDArray[np.float64]
Bool = NDArray[np.bool_]
Pixels = NDArray[np.uint8]
Labels = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class DetectedThing:
    """One detected thing. `color` or `shape` is None if unclear; position and radius are in pixels."""

    color: str | None
    shape: str | None
    x: float
    y: float
    radius: float
    overlap: float  # with the best template, in [0, 1]


@dataclass(frozen=True, kw_only=True)
class DetectedScene:
    """All things on an image. `background` is None if it is not plain or has no named color."""

    background: str | None
    things: tuple[DetectedThing, ...]


@dataclass(frozen=True, kw_only=True)
class _Part:
    """An image, or the part of it around one thing."""

    ground: Pixels  # [3], the background's color
    pixels: Pixels  # [h, w, 3]
    labels: Labels  # [h, w], 1 + the nearest named color, 0 if the background is nearer
    numbers: Labels  # [h, w], the pixel's connected region; 0 is the background


def detect(pixels: Pixels) -> DetectedScene:
    """Detect the background and the things of an image.  # [H, W, 3] uint8"""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"expected an image in uint8 [H, W, 3], got {pixels.dtype} {list(pixels.shape)}.")
    ground, background = _ground(pixels)
    labels = _labels(pixels, ground)
    numbers, _ = ndimage.label(_foreground(pixels, ground, labels))
    full = _Part(ground=ground, pixels=pixels, labels=labels, numbers=numbers)
    windows = ndimage.find_objects(numbers)
    return DetectedScene(background=background, things=tuple(_thing(full, n, windows[n - 1]) for n in _things(numbers)))


# ----------------------------------------------------------------------------------------------------------- colors


def oklab(rgb: Pixels) -> Array:
    """Convert sRGB to Oklab (B. Ottosson, 2020), a perceptually uniform color space.  # [..., 3] -> [..., 3]"""
    return np.asarray(np.cbrt(_LINEAR[rgb] @ _RGB_TO_LMS.T) @ _LMS_TO_OKLAB.T)


_UNIT = np.arange(256) / 255
_LINEAR = np.where(_UNIT <= 0.04045, _UNIT / 12.92, ((_UNIT + 0.055) / 1.055) ** 2.4)
_RGB_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LMS_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_NAMES = tuple(scenes.COLORS)
_PALETTE = np.array(list(scenes.COLORS.values()), dtype=np.uint8)  # [10, 3]
_PALETTE_LAB = oklab(_PALETTE)


def _nearest(points: Array, centers: Array) -> Labels:
    """Return the index of the nearest center for each point.  # [..., 3], [N, 3] -> [...]"""
    return np.asarray(((centers**2).sum(axis=1) - 2 * points @ centers.T).argmin(axis=-1))


def _name(color: Pixels) -> str | None:
    away = np.linalg.norm(_PALETTE_LAB - oklab(color), axis=1)
    best = int(away.argmin())
    return _NAMES[best] if away[best] <= COLOR_REACH else None


def _median(colors: Pixels) -> Pixels:
    return np.asarray(np.median(colors, axis=0)).astype(np.uint8)


def _ground(pixels: Pixels) -> tuple[Pixels, str | None]:
    """Return the color of the background, which is that of the frame, and its name.  # [H, W, 3] -> [3]"""
    outside = np.ones(pixels.shape[:2], dtype=bool)
    outside[FRAME:-FRAME, FRAME:-FRAME] = False
    frame = pixels[outside]
    ground = _median(frame)
    plain = np.linalg.norm(oklab(frame) - oklab(ground), axis=-1) <= COLOR_REACH
    return ground, _name(ground) if plain.mean() >= PLAIN_SHARE else None


def _labels(pixels: Pixels, ground: Pixels) -> Labels:
    """Return 1 + the nearest named color for each pixel, 0 if the background is nearer.  # [H, W]"""
    lab, palette = oklab(ground), _PALETTE_LAB.copy()
    own = _nearest(lab, palette)
    palette[own] = lab  # a tinted background is still the background
    best = _nearest(oklab(pixels), palette)
    return np.where(best == own, 0, best + 1)


# ------------------------------------------------------------------------------------------------------------ things


def _core(mask: Bool) -> Bool:
    return np.asarray(ndimage.binary_erosion(mask, np.ones((3, 3))))


def _foreground(pixels: Pixels, ground: Pixels, labels: Labels) -> Bool:
    """Return the pixels that are nearer to the color of a thing than to the background.  # [H, W]

    Only colors with a core count: along an edge, red and white mix to a band of pink. Colors mix linearly in sRGB, so
    the distance uses sRGB, and the boundary is halfway even if two things nearly touch.
    """
    often = 1 + np.flatnonzero(np.bincount(labels.ravel(), minlength=1 + len(_NAMES))[1:] >= SPECK)
    present = [i - 1 for i in often if _core(labels == i).sum() >= SPECK]
    centers = np.vstack([ground, _PALETTE[present]]).astype(np.float64)
    return np.asarray(_nearest(pixels.astype(np.float64), centers) > 0)


def _things(numbers: Labels) -> list[int]:
    """Return the connected regions that are large and thick enough to be things.  # [H, W]"""
    large = 1 + np.flatnonzero(np.bincount(numbers.ravel())[1:] > SPECK)
    return [int(n) for n in large if _core(numbers == n).sum() >= SPECK]


def _thing(full: _Part, number: int, window: tuple[slice, slice]) -> DetectedThing:
    top, left = (max(0, w.start - EDGE) for w in window)
    cut = (slice(top, window[0].stop + EDGE), slice(left, window[1].stop + EDGE))
    part = _Part(ground=full.ground, pixels=full.pixels[cut], labels=full.labels[cut], numbers=full.numbers[cut])
    color, amount = _color(part, number)
    x, y = likeness.centroid(amount)
    overlaps = likeness.shape_overlaps(amount)
    best, clear = max(overlaps, key=lambda s: overlaps[s]), likeness.clear_winner(overlaps)
    return DetectedThing(
        color=color,
        shape=clear if _has_hole(part.numbers == number) == (clear == "ring") else None,
        x=left + x + 0.5,
        y=top + y + 0.5,
        radius=float(np.sqrt(amount.sum() / likeness.unit_area(best))),
        overlap=overlaps[best],
    )


def _color(part: _Part, number: int) -> tuple[str | None, Array]:
    """Return a thing's color, None if it has several, and its share of each pixel, in [0, 1].  # [h, w]

    The shares add up to the thing's area even if its edge is soft.
    """
    mask = part.numbers == number
    core = _innermost(mask)
    counts = np.bincount(part.labels[core], minlength=2)[1:]
    if counts.max() < PURE_SHARE * core.sum():
        return None, mask.astype(np.float64)
    ground, color = part.ground.astype(np.float64), _median(part.pixels[core])
    line, offset = color - ground, part.pixels - ground
    amount = np.clip(offset @ line / (line @ line), 0, 1)
    mixture = np.linalg.norm(offset - amount[..., None] * line, axis=-1) <= MIXED
    others = ndimage.binary_dilation((part.numbers > 0) & ~mask, iterations=EDGE // 2)
    near = ndimage.binary_dilation(mask, iterations=EDGE) & ~others
    return _name(color) if mixture[mask].mean() >= PURE_SHARE else None, amount * near


def _innermost(mask: Bool) -> Bool:
    """Return the part of a thing that is deeper than DEPTH, or its deeper half if the thing is too thin."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    return np.asarray(depth >= min(DEPTH, depth.max() / 2))


def _has_hole(mask: Bool) -> bool:
    return bool(mask.sum() < (1 - HOLE_SHARE) * ndimage.binary_fill_holes(mask).sum())
