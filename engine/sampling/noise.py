"""Noise as a function of a seed: the numbers that `torch.randn` gives on the CPU, without torch.

A picture's noise depends on its seed alone, never on the batch it is drawn in. PyTorch draws 32-bit numbers from a
Mersenne twister, keeps 24 bits of each as a uniform number, and turns blocks of sixteen into normal ones by
Box and Muller (aten/src/ATen/native/cpu/DistributionTemplates.h, `normal_fill`); so do we, equal to about 1e-6.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

Floats = NDArray[np.float32]

MAX_SEED = 2**32 - 1  # PyTorch's twister keeps the low 32 bits of a seed; larger seeds would be duplicates


class NoiseStream:
    """The stream of normal numbers of one seed."""

    def __init__(self, seed: int) -> None:
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed <= MAX_SEED:
            raise InputError(f"a seed is a whole number from 0 to {MAX_SEED}, got {seed!r}.")
        # A legacy RandomState seeds the twister as PyTorch does (init_genrand); `default_rng` would not.
        self._twister = np.random.RandomState(int(seed))

    def draw(self, shape: tuple[int, ...]) -> Floats:
        """The next normal numbers, as `torch.randn(shape, generator=...)` draws them; at least sixteen."""
        count = int(np.prod(shape))
        if count < 16:
            raise InputError(f"noise is drawn sixteen numbers at a time or more, got the shape {list(shape)}.")
        values = self._uniform(count)
        whole = count - count % 16
        values[:whole] = _box_muller(values[:whole])
        if count % 16:  # the last block of an odd count is drawn afresh, over the end of the one before
            values[-16:] = _box_muller(self._uniform(16))
        return values.reshape(shape)

    def _uniform(self, count: int) -> Floats:
        bits = self._twister.randint(0, 2**32, count, dtype=np.uint32)
        return (bits & 0xFFFFFF).astype(np.float32) * np.float32(2.0**-24)


def _box_muller(uniform: Floats) -> Floats:
    """Blocks of eight radii and eight angles to sixteen normal numbers.  # [16 n] -> [16 n]"""
    blocks = uniform.reshape(-1, 2, 8)
    radius = np.sqrt(-2.0 * np.log(1.0 - blocks[:, 0]))
    angle = np.float32(2 * np.pi) * blocks[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)


class BatchNoise:
    """Draws for a batch, each picture from its own stream."""

    def __init__(self, seeds: Sequence[int], shape: tuple[int, int, int]) -> None:
        """`shape` is one picture's latents, (channels, height, width)."""
        self._streams = [NoiseStream(s) for s in seeds]
        self._shape = shape

    def __call__(self) -> Floats:
        """The next draw.  # [B, C, H, W]"""
        return np.concatenate([s.draw((1, *self._shape)) for s in self._streams])
