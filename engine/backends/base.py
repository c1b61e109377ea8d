"""The interfaces that every backend provides: a runner over named arrays, and optional weight updates.

This module knows no backend and does not choose one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from ..weights.delta import WeightDeltas

Arrays = Mapping[str, NDArray[Any]]


class Runner(Protocol):
    """A loaded component. Threads may share a runner."""

    backend: str
    precision: str

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Return all outputs by name. The caller has checked the inputs against the bindings."""
        ...


@runtime_checkable
class SupportsWeightUpdates(Protocol):
    """A runner whose weights can be changed: by new initializers, by new constants, by a refit, or in place."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the weight's shape of every linear layer and convolution, by the layer's name in the model."""
        ...

    def update_weights(self, deltas: WeightDeltas) -> None:
        """Set each weight that has a delta to its original value plus the delta, and all others to their originals.

        The original values come back bit for bit. The caller makes sure that nothing runs meanwhile.

        Raises:
            BackendError: the update failed. The runner cannot be used again until an update succeeds.
        """
        ...
