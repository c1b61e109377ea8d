"""The interface between a denoising session and the network that compiles its parts. Imports no library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    from ..base import Arrays
    from .requests import Request


class Compiler(Protocol):
    """A network that compiles parts of its graph for the shapes of a call, and caches them."""

    name: str
    notes: tuple[str, ...]  # for reports

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """Held around every use of the requests."""
        ...

    @property
    def weights_bytes(self) -> int:
        """The size of all weights."""
        ...

    @property
    def output_names(self) -> list[str]:
        """The outputs in the network's order."""
        ...

    def cached(self, key: str, make: Callable[[], Any]) -> Any:
        """Return the cached value of this key, or make it now. The caller holds the lock."""
        ...

    def sized(self, shapes: Mapping[str, tuple[int, ...]]) -> Any:
        """Return the graph for these shapes."""
        ...

    def compiled(
        self, key: Mapping[str, Any], graph: Callable[[], Any], *, streams: int = 1, precise: bool = False
    ) -> list[Request]:
        """Return a request for each stream of the graph that `key` describes."""
        ...

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Run the network as one graph."""
        ...
