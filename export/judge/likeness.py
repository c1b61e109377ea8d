"""Classify the shape of a soft mask by its overlap with templates that the formulas of `scenes` draw.

Mask and template are normalized to the same area and centroid, which removes position and size. The templates are the
exact shapes, and variants as generators draw them: with worn corners and soft edges, slightly larger, smaller or
shifted. This module does not know colors.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from . import scenes

MIN_OVERLAP, MIN_RING_OVERLAP = 0.95, 0.9  # of a mask that has a shape; a ring is thin and loses more
SHAPE_LEAD = 0.004  # over the next shape; below it the mask is ambiguous

GRID, REACH = 32, 1.1  # a normalized mask: cells per side, and its half width in square roots of its area
SOFTNESS = 0.7  # blur of a detected mask, in cells, so that a shift of half a cell costs little

# Variants of the templates. The first of each is the exact shape.
CORNERS = (0.0, 0.2)  # the blur that rounds corners, in radii
TEMPLATE_SOFTNESS = (0.7, 1.4, 2.1)  # cells; the last is a small shape blurred by some three pixels
SHIFTS = ((0.0, 0.0), (0.04, 0.0), (-0.04, 0.0), (0.0, 0.04), (0.0, -0.04))  # square roots of the area
SCALES = (1.0, 0.95, 1.05)

Array = NDArray[np.float64]
Floats = NDArray[np.float32]

_UNIT_RADIUS = 60.0  # pixels: the largest that a scene can hold


def shape_overlaps(mask: Array) -> dict[str, float]:
    """Return the overlap of a soft mask with each shape's best template: Tanimoto's ab / (a^2 + b^2 - ab).  # [h, w]

    For hard masks this is intersection over union. For soft masks it also depends on how soft each edge is, so it
    separates a blurred star from a circle where a sum of minima does not.
    """
    seen = ndimage.gaussian_filter(_normalized(mask, (0, 0), 1), SOFTNESS).astype(np.float32).ravel()
    bank, squares = _templates()
    both = bank @ seen
    best = (both / (squares + seen @ seen - both)).max(axis=1)
    return dict(zip(scenes.SHAPES, map(float, best), strict=True))


def clear_winner(overlaps: dict[str, float]) -> str | None:
    """Return the shape whose overlap is high and clearly above all others, or None."""
    second, best = sorted(overlaps, key=lambda s: overlaps[s])[-2:]
    good = overlaps[best] >= (MIN_RING_OVERLAP if best == "ring" else MIN_OVERLAP)
    return best if good and overlaps[best] - overlaps[second] >= SHAPE_LEAD else None


@cache
def unit_area(shape: str) -> float:
    """Return the area of a shape in squares of its radius."""
    return float(_drawn(shape).sum()) / _UNIT_RADIUS**2


def centroid(mask: Array) -> tuple[float, float]:
    """Return the center of mass (x, y) in pixels; 0 is the center of the first pixel.  # [h, w]"""
    down, across = mask.sum(axis=1), mask.sum(axis=0)
    return float(across @ np.arange(across.size) / across.sum()), float(down @ np.arange(down.size) / down.sum())


def _normalized(mask: Array, shift: tuple[float, float], scale: float) -> Array:
    """Resample a mask to the area `scale` squared, its centroid `shift` off center.  # [h, w] -> [GRID, GRID]"""
    root = np.sqrt(mask.sum())
    x, y = centroid(mask)
    cells = ((np.arange(GRID) + 0.5) / GRID * 2 - 1) * REACH
    down, across = (c + (cells - s) * root / scale for c, s in ((y, shift[1]), (x, shift[0])))
    return np.asarray(ndimage.map_coordinates(mask, np.stack(np.meshgrid(down, across, indexing="ij")), order=1))


@cache
def _drawn(shape: str) -> Array:
    middle = scenes.SIZE / 2
    thing = scenes.Thing(color="black", shape=shape, size=None, x=middle, y=middle, radius=_UNIT_RADIUS)
    return np.asarray(scenes.coverage(thing))


def _worn(mask: Array, corner: float) -> Array:
    if corner == 0:
        return mask
    return np.asarray(ndimage.gaussian_filter(mask, corner * _UNIT_RADIUS) >= 0.5).astype(np.float64)


@cache
def _templates() -> tuple[Floats, Floats]:
    """Return all templates of each shape, and their squared norms.  # [S, T, GRID * GRID], [S, T]"""
    bank = [
        [
            ndimage.gaussian_filter(_normalized(worn, shift, scale), softness).ravel()
            for worn in [_worn(_drawn(shape), corner) for corner in CORNERS]
            for shift, scale, softness in product(SHIFTS, SCALES, TEMPLATE_SOFTNESS)
        ]
        for shape in scenes.SHAPES
    ]
    cells = np.array(bank, dtype=np.float32)
    return cells, (cells**2).sum(axis=-1)
