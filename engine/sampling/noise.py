"""Noise as a function of a seed: the numbers of `torch.randn` on the CPU, without torch.

An image's noise depends only on its seed, never on the batch. PyTorch draws 32-bit numbers from a Mersenne twister,
uses 24 bits of each as a uniform number, and turns blocks of sixteen into normal ones by Box and Muller
(aten/src/ATen/native/cpu/DistributionTemplates.h, `normal_fill`). This code does the same; results agree to about 1e-6.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

Floats = NDArray[np.float32]

MAX_SEED = 2**64 - 1  # as of PyTorch's generator, whose twister uses the low 32 bits


class BatchNoise:
    """Streams of normal numbers, one for each image of a batch."""

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...]) -> None:
        """`shape` is that of one image's latents, (channels, height, width), or of a clip's; at least 16 numbers."""
        if int(np.prod(shape)) < 16:
            message = f"Cannot draw noise: got the shape {list(shape)}; expected at least sixteen numbers."
            raise InputError(message, argument="shape", got=shape)
        self._twisters, self._shape = [_twister(seed) for seed in seeds], shape

    def __call__(self) -> Floats:
        """Return the next draw, as `torch.randn(shape, generator=...)` for each image.  # [B, C, H, W]"""
        return self.of(self._shape)

    def of(self, shape: tuple[int, ...]) -> Floats:
        """Return the next draw in another shape, of at least sixteen numbers.  # -> [B, *shape]"""
        count = int(np.prod(shape))
        return np.stack([_normal(twister, count).reshape(shape) for twister in self._twisters])

    def for_inputs(self, count: int, *, each: bool) -> Floats:
        """Return the noise for encoding `count` input images: that of each generated image.  # [B, C, H, W]"""
        del count, each
        return self()

    def on_inputs(self, count: int, shape: tuple[int, ...]) -> Floats:
        """Return noise for the pixels of `count` input images: that of each generated clip.  # -> [B, *shape]"""
        del count
        return self.of(shape)


class GeneratorNoise:
    """Noise from generators of torch, drawn as diffusers' `randn_tensor` draws it.

    The generators are the caller's and advance. A copy of this object shares them, and what they drew so far: the graph
    pipeline draws ahead, and the loop that runs in its place gets the same numbers.
    """

    def __init__(self, generators: Sequence[Any], batch: int, shape: tuple[int, ...]) -> None:
        """`generators` are one for a batch of `batch` images, or one for each; `shape` is that of one image."""
        self._generators, self._batch, self._shape = generators, batch, shape
        self._drawn: list[Floats] = []
        self._next = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> GeneratorNoise:
        return copy.copy(self)

    def __call__(self) -> Floats:
        """Return the next draw.  # [B, C, H, W]"""
        return self._draw(self._batch)

    def of(self, shape: tuple[int, ...]) -> Floats:
        """Return the next draw in another shape.  # -> [B, *shape]"""
        return self._draw(self._batch, shape)

    def for_inputs(self, count: int, *, each: bool) -> Floats:
        """Return the noise for encoding `count` input images.

        Diffusers' image-to-image gives each image of the batch its own (`each`), if it has generators for them. Else
        there is one for each input image.  # [count or B, C, H, W]
        """
        return self._draw(self._batch if each and len(self._generators) > 1 else count)

    def on_inputs(self, count: int, shape: tuple[int, ...]) -> Floats:
        """Return noise for the pixels of `count` input images: one for all, or that of each.  # -> [B, *shape]"""
        if len(self._generators) > 1:
            return self.of(shape)
        return self._draw(count, shape).repeat(self._batch // count, axis=0)

    def _draw(self, count: int, shape: tuple[int, ...] | None = None) -> Floats:
        import torch

        shape = self._shape if shape is None else shape

        if self._next == len(self._drawn):
            shapes = [(1, *shape)] * count
            if len(self._generators) == 1:
                shapes = [(count, *shape)]
            pairs = zip(shapes, self._generators, strict=False)  # fewer input images than generators use the first
            parts = [torch.randn(shape, generator=each, device=each.device).cpu().numpy() for shape, each in pairs]
            self._drawn.append(np.concatenate(parts))
        self._next += 1
        return self._drawn[self._next - 1]


Noise: TypeAlias = BatchNoise | GeneratorNoise


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
