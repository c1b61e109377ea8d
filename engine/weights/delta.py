"""Low-rank updates of weights by LoRAs (Hu et al. 2021, arXiv 2106.09685).

Knows neither files nor backends. A delta computes the new value of one weight, so that a second copy of a large network
is never in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class LowRankTerm:
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


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightDelta:
    """The sum of all updates of one weight, in the order in which they are applied."""

    terms: tuple[LowRankTerm, ...]

    def __call__(self, original: NDArray[np.floating]) -> Floats:
        """Return the new value of a weight, from its original value."""
        new = original.astype(np.float32)
        for term in self.terms:
            new += term.delta().reshape(original.shape)
        return new

    def largest(self) -> float:
        """Return the largest magnitude of the update."""
        first, *others = (term.delta().ravel() for term in self.terms)
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
