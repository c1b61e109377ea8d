"""What every backend provides: a runner over named arrays. Knows no backend and no way to choose one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from ..weights.delta import WeightDeltas

Arrays = Mapping[str, NDArray[Any]]


class Runner(Protocol):
    """A loaded component. Threads may share it."""

    backend: str
    precision: str

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """All outputs by name. The caller has checked the inputs against the bindings."""
        ...


@runtime_checkable
class SupportsWeightUpdates(Protocol):
    """A runner whose weights can be changed: by new initializers, new constants, a refit, or in place."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Layer, as the model calls it -> its weight's shape: of every linear layer and convolution."""
        ...

    def update_weights(self, patches: WeightDeltas) -> None:
        """From now on each weight is its own with its patch added, and every other its own, bit for bit.

        Nobody runs it meanwhile. Raises `BackendError`; the runner may then be used no more until `adapt` succeeds.
        """
        ...
