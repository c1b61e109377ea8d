"""What LoRAs do to weights: to each, a sum of products of two small matrices (Hu et al. 2021, arXiv 2106.09685).

Knows neither files nor backends: a patch turns a weight's own value into its new one, one weight at a time, so that
the changed weights of a large network are never all in memory beside the others for its sake.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class LowRankTerm:
    """scale x up @ down, or, with a kernel `middle` between (LoCon's Tucker form), the product of all three.

    # up [out, r], down [r, in x ...]; with middle [r, s, k, k]: up [out, r], down [s, in]
    """

    up: Floats
    down: Floats
    middle: Floats | None
    scale: float

    def delta(self) -> Floats:
        """What is added to the weight, its axes after the first perhaps in one.  # [out, in x ...], [out, in, k, k]"""
        if self.middle is None:
            product: Floats = self.up @ self.down
        else:
            product = np.einsum("or,rskl,si->oikl", self.up, self.middle, self.down, optimize=True)
        return product * np.float32(self.scale)


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightDelta:
    """All that is added to one weight, in the order in which it was asked for."""

    terms: tuple[LowRankTerm, ...]

    def __call__(self, own: NDArray[np.floating]) -> Floats:
        """The weight's new value from its own."""
        new = own.astype(np.float32)
        for term in self.terms:
            new += term.delta().reshape(own.shape)
        return new

    def largest(self) -> float:
        """The largest number that is added."""
        first, *others = (term.delta().ravel() for term in self.terms)
        return float(np.abs(sum(others, first)).max())


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightDeltas:
    """The patches of one network, by the names of its weights ("mid_block.attentions.0.proj_in.weight").

    Equal `key`s mean equal patches: for what is kept on disk.
    """

    patches: Mapping[str, WeightDelta] = field(default_factory=dict)
    key: str = ""

    def __bool__(self) -> bool:
        return bool(self.patches)


NO_DELTAS = WeightDeltas()
