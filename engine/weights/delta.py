"""Updates of weights by LoRAs (Hu et al. 2021, arXiv 2106.09685) and by the other adapters (`adapters`).

Knows neither files nor backends. A delta computes the new value of one weight, so that a second copy of a large network
is never in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Term(Protocol):
    """One adapter's update of one weight."""

    def apply(self, weight: Floats, original: Floats) -> Floats:
        """Return the new value of a weight, which may be changed, from the terms before and the model's own value.

        # [out, in, ...], float32
        """
        ...

    def largest(self) -> float:
        """Return the largest magnitude of the update, or an estimate if that depends on the weight."""
        ...

    def bound(self) -> float:
        """Return a limit that no number of the update exceeds, in any order of computation. NaN or inf: not finite."""
        ...


class AdditiveTerm:
    """A term that adds `delta()`, which does not depend on the weight."""

    def delta(self) -> Floats:
        """Return the update of the weight, in any shape with its number of values."""
        raise NotImplementedError

    def apply(self, weight: Floats, original: Floats) -> Floats:
        """Add the update."""
        weight += self.delta().reshape(weight.shape)
        return weight

    def largest(self) -> float:
        """Return the largest magnitude of the update."""
        return float(np.abs(self.delta()).max())

    def bound(self) -> float:
        """Return a limit of the update's numbers, whatever the order of the factors."""
        raise NotImplementedError


def top(array: Floats) -> float:
    """Return the largest magnitude, at least 1. NaN if an element is."""
    return float(np.abs(array).max(initial=1))


@dataclass(frozen=True, kw_only=True, eq=False)
class LowRankTerm(AdditiveTerm):
    """The product scale x up @ down, or with `middle` (the Tucker form of LoCon) the product of all three.

    # up [out, r], down [r, in x ...]; with middle [r, s, k, k]: up [out, r], down [s, in]
    """

    up: Floats
    down: Floats
    middle: Floats | None
    scale: float

    def delta(self) -> Floats:
        """Return the update of the weight.  # [out, in x ...], or with middle [out, in, k, k]"""
        if self.middle is None:
            product: Floats = self.up @ self.down
        else:
            product = np.einsum("or,rskl,si->oikl", self.up, self.middle, self.down, optimize=True)
        return product * np.float32(self.scale)

    def bound(self) -> float:
        """Return a limit of the product, whatever the order of its factors."""
        bound = max(abs(self.scale), 1) * len(self.down) * top(self.up) * top(self.down)
        return bound if self.middle is None else bound * len(self.middle) * top(self.middle)


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightDelta:
    """All updates of one weight. Each applies to the result of the one before it."""

    terms: tuple[Term, ...]

    def __call__(self, original: NDArray[np.floating]) -> Floats:
        """Return the new value of a weight, from its original value."""
        own = original.astype(np.float32, copy=False)
        new = own.copy()
        for term in self.terms:
            new = term.apply(new, own)
        return new

    def largest(self) -> float:
        """Return the largest magnitude of the update; with other terms than additive ones, of a single term."""
        if not all(isinstance(term, AdditiveTerm) for term in self.terms):
            return max(term.largest() for term in self.terms)
        first, *others = (term.delta().ravel() for term in self.terms if isinstance(term, AdditiveTerm))
        return float(np.abs(sum(others, first)).max())


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightDeltas:
    """The updates of one network, by the names of its weights ("mid_block.attentions.0.proj_in.weight").

    Equal `key`s mean equal updates. The key identifies changed networks in caches on disk.
    """

    patches: Mapping[str, WeightDelta] = field(default_factory=dict)
    key: str = ""

    def __bool__(self) -> bool:
        return bool(self.patches)


NO_DELTAS = WeightDeltas()
