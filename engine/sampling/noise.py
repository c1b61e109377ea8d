"""Noise as a function of a seed: the numbers of `torch.randn` on the CPU, without torch.

An image's noise depends only on its seed, never on the batch. PyTorch draws 32-bit numbers from a Mersenne twister,
uses 24 bits of each as a uniform number, and turns blocks of sixteen into normal ones by Box and Muller
(aten/src/ATen/native/cpu/DistributionTemplates.h, `normal_fill`). This code does the same; results agree to about 1e-6.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

Floats = NDArray[np.float32]

MAX_SEED = 2**64 - 1  # as of PyTorch's generator, whose twister uses the low 32 bits


class BatchNoise:
    """Streams of normal numbers, one for each image of a batch."""

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...]) -> None:
        """`shape` is that of one image's latents, (channels, height, width), with at least sixteen numbers."""
        if (count := int(np.prod(shape))) < 16:
            message = f"Cannot draw noise: got the shape {list(shape)}; expected at least sixteen numbers."
            raise InputError(message, argument="shape", got=shape)
        self._twisters, self._shape, self._count = [_twister(seed) for seed in seeds], shape, count

    def __call__(self) -> Floats:
        """Return the next draw, as `torch.randn(shape, generator=...)` for each image.  # [B, C, H, W]"""
        return np.stack([_normal(twister, self._count).reshape(self._shape) for twister in self._twisters])


def _twister(seed: int) -> np.random.RandomState:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed <= MAX_SEED:
        expected = f"an integer from 0 to {MAX_SEED}"
        message = f"Invalid seed: got {seed!r}; expected {expected}."
        raise InputError(message, argument="seed", got=seed, expected=expected)
    # A legacy RandomState seeds the twister as PyTorch does (init_genrand); `default_rng` would not.
    return np.random.RandomState(int(seed) & 0xFFFFFFFF)


def _normal(twister: np.random.RandomState, count: int) -> Floats:
    values = _uniform(twister, count)
    aligned = count - count % 16
    values[:aligned] = _box_muller(values[:aligned])
    if count % 16:  # a remainder is drawn again as a full block, over the end of the block before it
        values[-16:] = _box_muller(_uniform(twister, 16))
    return values


def _uniform(twister: np.random.RandomState, count: int) -> Floats:
    bits = twister.randint(0, 2**32, count, dtype=np.uint32)
    return (bits & 0xFFFFFF).astype(np.float32) * np.float32(2.0**-24)


def _box_muller(uniform: Floats) -> Floats:
    """Turn blocks of eight radii and eight angles into sixteen normal numbers.  # [16 n] -> [16 n]"""
    blocks = uniform.reshape(-1, 2, 8)
    radius = np.sqrt(-2.0 * np.log(1.0 - blocks[:, 0]))
    angle = np.float32(2 * np.pi) * blocks[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
