"""Updates of weights by adapters other than LoRA, as LyCORIS (Yeh et al. 2023, arXiv 2309.14859) merges them.

LoHa, LoKr, DoRA, IA3, OFT, BOFT, GLoRA and full differences. Each class has the formula and its source. A multiplier
(the LoRA's weight) other than 1 acts as in LyCORIS: it scales the update of additive terms, and the others as they say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .delta import AdditiveTerm, Floats, top

_EPS = float(np.finfo(np.float32).eps)  # LyCORIS adds it to norms
_USUAL = 0.1  # a weight's usual magnitude, to estimate the update of a term that scales it
_MOST_SCALED = 1e-6  # a term that scales weights may only use this part of the range of its factors

Doubles = NDArray[np.float64]


def rebuild(core: Floats | None, first: Floats, second: Floats) -> Floats:
    """Return first @ second, or the Tucker form.  # [out, in x ...]; with a core [r, r, ...]: first [r, out]"""
    if core is None:
        product: Floats = first @ second.reshape(len(second), -1)
        return product
    tucker: Floats = np.einsum("ij...,ip,jr->pr...", core, first, second, optimize=True)
    return tucker.reshape(first.shape[1], -1)


def _bound_of(core: Floats | None, first: Floats, second: Floats) -> float:
    bound = top(first) * top(second) * len(second)
    return bound if core is None else bound * top(core) * len(core)


@dataclass(frozen=True, kw_only=True, eq=False)
class HadamardTerm(AdditiveTerm):
    """LoHa (Hyeon-Woo et al. 2021, arXiv 2108.06098): scale x the elementwise product of two low-rank matrices.

    # first and second: (core or None, w_a, w_b), see `rebuild`
    """

    first: tuple[Floats | None, Floats, Floats]
    second: tuple[Floats | None, Floats, Floats]
    scale: float

    def delta(self) -> Floats:
        """Return the update of the weight.  # [out, in x ...]"""
        product: Floats = rebuild(*self.first) * rebuild(*self.second) * np.float32(self.scale)
        return product

    def bound(self) -> float:
        """Return a limit of the product, whatever the order of its factors."""
        return _bound_of(*self.first) * _bound_of(*self.second) * max(abs(self.scale), 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class KroneckerTerm(AdditiveTerm):
    """LoKr: scale x the Kronecker product of two matrices, of which each may be a low-rank product.

    # first [a, c], second [b, d x ...]; the weight [a x b, c x d, ...]
    """

    first: Floats
    second: Floats
    scale: float

    def delta(self) -> Floats:
        """Return the update of the weight.  # [out, in x ...]"""
        product: Floats = np.kron(self.first, self.second * np.float32(self.scale))
        return product

    def bound(self) -> float:
        """Return a limit of the product."""
        return top(self.first) * top(self.second) * max(abs(self.scale), 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class FullTerm(AdditiveTerm):
    """A difference of the whole weight."""

    difference: Floats
    scale: float

    def delta(self) -> Floats:
        """Return the update of the weight."""
        return self.difference * np.float32(self.scale)

    def bound(self) -> float:
        """Return a limit of the product."""
        return top(self.difference) * max(abs(self.scale), 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class DecomposedTerm:
    """DoRA (Liu et al. 2024, arXiv 2402.09353): the updated weight gets the norms `magnitude`.

    LyCORIS takes (weight + update) x (multiplier x (magnitude / norm - 1) + 1). peft scales the update by the
    multiplier, always sets the whole magnitude, and takes the norm of the model's own weight + update, without other
    adapters; its `multiplier` here is None.

    # magnitude [out, 1, ...] for norms per output, or [1, in, ...] for norms per input channel
    """

    inner: AdditiveTerm
    magnitude: Floats
    multiplier: float | None

    def apply(self, weight: Floats, original: Floats) -> Floats:
        """Return the new value of a weight."""
        update = self.inner.delta().reshape(weight.shape)
        weight += update
        kept = 1 if self.magnitude.shape[0] == 1 and weight.shape[0] != 1 else 0
        axes = tuple(axis for axis in range(weight.ndim) if axis != kept)
        normed = weight if self.multiplier is not None else original + update
        norm = np.sqrt(np.square(normed, dtype=np.float64).sum(axes, keepdims=True))
        if self.multiplier is None:
            factor = self.magnitude / np.maximum(norm, _EPS)
        else:
            factor = self.multiplier * (self.magnitude / (norm + _EPS) - 1) + 1
        new: Floats = (weight * factor).astype(np.float32)
        return new

    def largest(self) -> float:
        """Return the largest magnitude of the update before the norms are set."""
        return self.inner.largest()

    def bound(self) -> float:
        """Return a limit: LyCORIS' own factor grows to magnitude / eps for a weight of zeros."""
        return top(self.magnitude) * self.inner.bound() / _MOST_SCALED


@dataclass(frozen=True, kw_only=True, eq=False)
class ScaleTerm:
    """IA3 (Liu et al. 2022, arXiv 2205.05638): weight x (1 + multiplier x factors), per output or input channel.

    # factors [out, 1, ...] or [1, in, ...]
    """

    factors: Floats
    multiplier: float

    def apply(self, weight: Floats, original: Floats) -> Floats:
        """Return the new value of a weight."""
        return weight * (self.factors * np.float32(self.multiplier) + np.float32(1))

    def largest(self) -> float:
        """Estimate the largest magnitude of the update."""
        return float(np.abs(self.factors).max()) * abs(self.multiplier) * _USUAL

    def bound(self) -> float:
        """Return a limit of the factors."""
        return (top(self.factors) * max(abs(self.multiplier), 1) + 1) / _MOST_SCALED


@dataclass(frozen=True, kw_only=True, eq=False)
class RotationTerm:
    """OFT (Qiu et al. 2023, arXiv 2306.07280) and BOFT (Liu et al. 2023, arXiv 2311.06243): the outputs are rotated.

    R = (I + Q)(I - Q)^-1 with Q = blocks - blocks^T. OFT multiplies each block of rows by multiplier x (R^T - I) + I.
    BOFT does it in stages that mix rows at a distance, with R and not its transpose; the multiplier acts in each stage.

    # blocks [blocks, size, size], or for BOFT [stages, blocks, size, size]; rescale [out, 1, ...] or None
    """

    blocks: Floats
    rescale: Floats | None
    constraint: float  # the largest norm of Q; 0 for none
    multiplier: float

    def _rotations(self) -> Doubles:
        blocks = self.blocks.astype(np.float64)
        skew = blocks - blocks.swapaxes(-1, -2)
        if self.constraint > 0 and (norm := float(np.linalg.norm(skew)) + 1e-8) > self.constraint:
            skew *= self.constraint / norm
        one: Doubles = np.eye(skew.shape[-1])
        rotated = (one + skew) @ np.linalg.inv(one - skew)
        scaled: Doubles = (rotated - one) * self.multiplier + one
        return scaled

    def apply(self, weight: Floats, original: Floats) -> Floats:
        """Return the new value of a weight."""
        rotations, rows = self._rotations(), weight.reshape(len(weight), -1).astype(np.float64)
        if rotations.ndim == 3:
            count, size, _ = rotations.shape
            rows = (rotations.swapaxes(-1, -2) @ rows.reshape(count, size, -1)).reshape(rows.shape)
        else:
            for stage, each in enumerate(rotations):
                rows = _rotate(each, rows, 2**stage * each.shape[-1] // 2)
        new = rows.reshape(weight.shape)
        return np.asarray(new if self.rescale is None else new * self.rescale, np.float32)

    def largest(self) -> float:
        """Estimate the largest magnitude of the update."""
        rotations = self._rotations()
        scaled = 0.0 if self.rescale is None else float(np.abs(self.rescale - 1).max())
        return max(float(np.abs(rotations - np.eye(rotations.shape[-1])).max()), scaled) * _USUAL

    def bound(self) -> float:
        """Return a limit: a rotation's elements are at most 1."""
        rescale = 1 if self.rescale is None else top(self.rescale)
        finite = 1.0 if math.isfinite(self.constraint + top(self.blocks)) else math.nan
        stages = len(self.blocks) if self.blocks.ndim == 4 else 1
        one = (2 * max(abs(self.multiplier), 1) + 1) * self.blocks.shape[-1]
        return float(finite * rescale * one**stages / _MOST_SCALED)


def _rotate(blocks: Doubles, rows: Doubles, distance: int) -> Doubles:
    """Rotate groups of rows of which the halves are `distance` apart: one stage of BOFT.  # rows [out, in x ...]"""
    out, width = rows.shape
    mixed = rows.reshape(-1, 2, distance, width).swapaxes(1, 2).reshape(len(blocks), -1, width)
    rotated: Doubles = (blocks @ mixed).reshape(-1, distance, 2, width).swapaxes(1, 2).reshape(out, width)
    return rotated


@dataclass(frozen=True, kw_only=True, eq=False)
class GeneralizedTerm:
    """GLoRA (Chavan et al. 2023, arXiv 2306.07967): weight + scale x (weight @ a1 @ a2 + b1 @ b2).

    # a1 [in, r], a2 [r, in], b1 [out, r], b2 [r, in x ...]; the products act on the weight's input channels
    """

    a1: Floats
    a2: Floats
    b1: Floats
    b2: Floats
    scale: float

    def apply(self, weight: Floats, original: Floats) -> Floats:
        """Return the new value of a weight."""
        inputs = np.moveaxis(weight, 1, -1)
        added = np.moveaxis(inputs @ self.a1 @ self.a2, -1, 1) + (self.b1 @ self.b2).reshape(weight.shape)
        return np.asarray(weight + added * np.float32(self.scale), np.float32)

    def largest(self) -> float:
        """Return the largest magnitude of the part that does not depend on the weight."""
        return float(np.abs(self.b1 @ self.b2).max()) * abs(self.scale)

    def bound(self) -> float:
        """Return a limit of the products."""
        ranks = self.a1.shape[1] * self.b1.shape[1] * self.a2.shape[1]
        tops = top(self.a1) * top(self.a2) * top(self.b1) * top(self.b2)
        return float(ranks * tops * max(abs(self.scale), 1) / _MOST_SCALED)
