"""Pictures too large for a network at once: overlapping tiles of one size, run one by one and blended into each other.

Knows nothing of what the network does, but that it looks no further than the tiles overlap, or little of what it does
depends on that.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

OVERLAP = 0.25  # of a tile's side, as diffusers has it


def tiled(run: Callable[[Floats], Floats], given: Floats, side: int, ratio: float) -> Floats:
    """What `run` makes of `given`, tile by tile and picture by picture.

    `side` is a tile's, in places of `given`, which a ratio below 1 divides; what comes out is `ratio` times as large.
    # [B, C, h, w] -> [B, D, H, W]
    """
    batch, _, height, width = given.shape
    whole: Floats | None = None
    weights: Floats | None = None
    for top in _starts(height, side, ratio):
        for left in _starts(width, side, ratio):
            part = np.ascontiguousarray(given[:, :, top : top + side, left : left + side])
            made = np.concatenate([run(part[i : i + 1]) for i in range(batch)])
            if whole is None or weights is None:
                whole = np.zeros((batch, made.shape[1], round(height * ratio), round(width * ratio)), np.float32)
                weights = np.zeros(whole.shape[2:], np.float32)
            rows, columns = (
                _place(start, size, ratio) for start, size in zip((top, left), made.shape[2:], strict=True)
            )
            ramp = np.minimum.outer(_ramp(made.shape[2]), _ramp(made.shape[3]))
            whole[:, :, rows, columns] += made * ramp
            weights[rows, columns] += ramp
    assert whole is not None
    assert weights is not None
    whole /= weights
    return whole


def _starts(length: int, side: int, ratio: float) -> list[int]:
    """Where tiles begin: all of one size, the last one moved back to the end.

    Between two places of what comes out, a tile would be laid down beside where it belongs.
    """
    if length <= side:
        return [0]
    grain = max(1, round(1 / ratio))
    step = max(grain, int(side * (1 - OVERLAP)) // grain * grain)
    return [*range(0, length - side, step), length - side]


def _place(start: int, size: int, ratio: float) -> slice:
    return slice(round(start * ratio), round(start * ratio) + size)


def _ramp(size: int) -> Floats:
    """How much each place of a tile counts: all the same inside, less towards the borders.  # [size]"""
    from_border = np.minimum(np.arange(size) + 0.5, size - np.arange(size) - 0.5)
    ramp: Floats = np.minimum(from_border / max(1.0, size * OVERLAP), 1).astype(np.float32)
    return ramp
