"""Tiling for large images: run a network on overlapping tiles of one size, one by one, and blend the results.

It assumes that the network's receptive field is not larger than the overlap, or that the rest has little effect.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

OVERLAP = 0.25  # of a tile's side, as in diffusers


def tiled(
    run: Callable[[Floats], Floats], inputs: Floats, side: int, ratio: float, *, together: bool = False
) -> Floats:
    """Call `run` for each tile of each image and blend the results. `together` runs the tile of all images at once.

    `side` is a tile's size in pixels of `inputs`; a ratio below 1 divides it. The output is `ratio` times as large.
    # [B, C, h, w] -> [B, D, H, W]
    """
    batch, _, height, width = inputs.shape
    blended: Floats | None = None
    weights: Floats | None = None
    for top in _starts(height, side, ratio):
        for left in _starts(width, side, ratio):
            part = np.ascontiguousarray(inputs[:, :, top : top + side, left : left + side])
            tile = run(part) if together else np.concatenate([run(part[i : i + 1]) for i in range(batch)])
            if blended is None or weights is None:
                blended = np.zeros((batch, tile.shape[1], round(height * ratio), round(width * ratio)), np.float32)
                weights = np.zeros(blended.shape[2:], np.float32)
            rows, columns = (
                _place(start, size, ratio) for start, size in zip((top, left), tile.shape[2:], strict=True)
            )
            ramp = np.minimum.outer(_ramp(tile.shape[2]), _ramp(tile.shape[3]))
            blended[:, :, rows, columns] += tile * ramp
            weights[rows, columns] += ramp
    assert blended is not None
    assert weights is not None
    blended /= weights
    return blended


def _starts(length: int, side: int, ratio: float) -> list[int]:
    """Return the start of each tile: all have one size, and the last one ends at the border.

    Starts are multiples of an output pixel. Otherwise a tile would be blended at a shifted position.
    """
    if length <= side:
        return [0]
    grain = max(1, round(1 / ratio))
    step = max(grain, int(side * (1 - OVERLAP)) // grain * grain)
    return [*range(0, length - side, step), length - side]


def _place(start: int, size: int, ratio: float) -> slice:
    return slice(round(start * ratio), round(start * ratio) + size)


def _ramp(size: int) -> Floats:
    """Return the weight of each pixel of a tile: constant inside, decreasing towards the borders.  # [size]"""
    from_border = np.minimum(np.arange(size) + 0.5, size - np.arange(size) - 0.5)
    ramp: Floats = np.minimum(from_border / max(1.0, size * OVERLAP), 1).astype(np.float32)
    return ramp
