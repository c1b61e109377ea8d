"""Which shape a soft mask looks like: it is laid over templates drawn with the formulas of `scenes`.

Mask and template are brought to the same area and centroid, so that place and size drop out. The templates come as
drawn and as generators draw them: with worn corners and soft edges, a little larger, smaller or shifted. Knows nothing
of colors.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from . import scenes

SHAPE_FIT, RING_FIT = 0.95, 0.9  # the least overlap at which a mask has a shape at all; a ring is thin, and loses more
SHAPE_LEAD = 0.004  # over the next shape; below it the mask could be either

GRID, REACH = 32, 1.1  # a normalized mask: cells a side, and how far it is kept, in square roots of its area
SOFTNESS = 0.7  # blur of a seen mask, in cells, so that half a cell's shift costs little

# How the templates vary. The first of each is the shape as drawn.
CORNERS = (0.0, 0.2)  # the blur that wears corners off, in radii
TEMPLATE_SOFTNESS = (0.7, 1.4, 2.1)  # cells; the last is a small shape blurred by some three pixels
SHIFTS = ((0.0, 0.0), (0.04, 0.0), (-0.04, 0.0), (0.0, 0.04), (0.0, -0.04))  # square roots of the area
SCALES = (1.0, 0.95, 1.05)

Array = NDArray[np.float64]
Floats = NDArray[np.float32]

_UNIT_RADIUS = 60.0  # pixels: as large as a scene holds


def fits(mask: Array) -> dict[str, float]:
    """The overlap of a soft mask with each shape's best template: Tanimoto's ab / (a^2 + b^2 - ab).  # [h, w]

    For hard masks that is intersection over union; for soft ones it also sees *how* soft each edge is, which tells a
    blurred star from a circle where a sum of minima does not.
    """
    seen = ndimage.gaussian_filter(_normalized(mask, (0, 0), 1), SOFTNESS).astype(np.float32).ravel()
    bank, squares = _templates()
    both = bank @ seen
    best = (both / (squares + seen @ seen - both)).max(axis=1)
    return dict(zip(scenes.SHAPES, map(float, best), strict=True))


def clear_winner(overlaps: dict[str, float]) -> str | None:
    """The shape that fits well, and better than all others; None where there is none."""
    second, best = sorted(overlaps, key=lambda s: overlaps[s])[-2:]
    good = overlaps[best] >= (RING_FIT if best == "ring" else SHAPE_FIT)
    return best if good and overlaps[best] - overlaps[second] >= SHAPE_LEAD else None


@cache
def unit_area(shape: str) -> float:
    """The area of a shape in squares of its radius."""
    return float(_drawn(shape).sum()) / _UNIT_RADIUS**2


def centroid(mask: Array) -> tuple[float, float]:
    """The center of mass (x, y) in pixels, 0 being the middle of the first.  # [h, w]"""
    down, across = mask.sum(axis=1), mask.sum(axis=0)
    return float(across @ np.arange(across.size) / across.sum()), float(down @ np.arange(down.size) / down.sum())


def _normalized(mask: Array, shift: tuple[float, float], scale: float) -> Array:
    """A mask resampled to the area `scale` squared, its centroid `shift` from the middle.  # [h, w] -> [GRID, GRID]"""
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
    """All templates of each shape, and their squares.  # [S, T, GRID * GRID], [S, T]"""
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
