"""A model of the time of a kernel on one H200. It was fitted to nothing: no figure of it was measured on a GPU.

A product reaches 80 % of the measured rate if its tiles fill all multiprocessors, a convolution 75 %, attention 45 % on
head sizes padded to 64 lanes; all else moves its bytes at 75 % of the measured bandwidth. A kernel takes at least 1 us,
and the graph leaves 1.2 us between two kernels. Expect errors of 30 %. The counts of kernels are exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .recorder import ATTENTION, CONVOLUTION, PRODUCT, Op

PEAK, BANDWIDTH, MULTIPROCESSORS = 790e12, 4.3e12, 132  # FLOP/s of bfloat16, bytes/s
GAP_S, LEAST_S = 1.2e-6, 1e-6
_TILES = (
    *((256, 128, 1.0), (128, 256, 1.0), (128, 160, 0.97), (128, 128, 0.92), (128, 64, 0.7), (64, 128, 0.7)),
    (64, 64, 0.5),
)
_SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)
_LANES = (64, 128, 192, 256, 512)


def seconds_of(op: Op) -> float:
    """Return the modelled seconds of a kernel."""
    if op.kind == PRODUCT:
        products, rows, columns, depth = op.shape
        return _product(products, rows, columns, depth, 0.80)
    if op.kind == CONVOLUTION:
        images, channels, size, outputs, height, width = op.shape
        return _product(1, images * height * width, outputs, channels * size * size, 0.75)
    if op.kind == ATTENTION and len(op.shape) == 5:
        return _attention(op)
    return op.bytes / (BANDWIDTH * 0.75) + LEAST_S


def step_seconds(ops: Sequence[Op]) -> float:
    """Return the modelled seconds of all kernels and of the gaps between them."""
    return sum(map(seconds_of, ops)) + len(ops) * GAP_S


def _product(products: int, rows: int, columns: int, depth: int, share: float) -> float:
    """Return the time of the best tile and split of the depth."""
    moved = 2 * products * (rows * depth + columns * depth + rows * columns) / BANDWIDTH
    best = math.inf
    for high, wide, efficiency in _TILES:
        tiles = products * math.ceil(rows / high) * math.ceil(columns / wide)
        for split in _SPLITS:
            if split > 1 and depth / split < 256:
                continue
            waves = math.ceil(tiles * split / MULTIPROCESSORS)
            rate = PEAK / MULTIPROCESSORS * share * efficiency
            extra = 4 * products * rows * columns * split / BANDWIDTH + 1.5e-6 if split > 1 else 0.0
            best = min(best, max(waves * 2 * high * wide * (depth / split) / rate + extra, moved * 1.1))
    return best + LEAST_S


def _attention(op: Op) -> float:
    images, heads, queries, keys, width = op.shape
    lanes = next((n for n in _LANES if width <= n), width)
    products = op.flops * lanes / width / (0.45 * PEAK)
    exponentials = 1.3 * images * heads * queries * keys / (MULTIPROCESSORS * 16 * 1.7e9)
    programs = images * heads * math.ceil(queries / 128) / MULTIPROCESSORS
    return max(products, exponentials) * math.ceil(programs) / programs + 1.5e-6
