"""A network as one graph, with what depends on the timestep computed apart where the graph has less than float32.

In bfloat16 a timestep of 751 is rounded to 752, and the sines of its embedding are then those of another timestep.
Diffusers computes the embedding in float32 as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from ..base import Array
from .partition import ROW_TIME_VALUES, split_timesteps
from .requests import Compiled, Request, run

Shapes = Mapping[str, tuple[int, ...]]


class Compiler(Protocol):
    """What compiles the graphs of a network."""

    def sized(self, shapes: Shapes) -> Any:
        """Return the graph for these shapes."""
        ...

    def compiled(
        self, key: Mapping[str, Any], graph: Callable[[], Any], *, streams: int = 1, precise: bool = False
    ) -> list[Request]:
        """Return a request for each stream of a graph. `precise` computes it in float32."""
        ...


class OneGraph(Compiled):
    """A network that is compiled for the shapes of a call."""

    def __init__(self, network: Compiler, shapes: Shapes, streams: int, *, precise_timesteps: bool) -> None:
        """Compile the graph. `precise_timesteps` computes what depends on the timestep in float32."""
        self._per_timestep: Request | None = None
        if not precise_timesteps or "timestep" not in shapes:
            super().__init__(network.compiled({"shapes": shapes}, lambda: network.sized(shapes), streams=streams))
            return

        @functools.cache
        def graphs() -> tuple[Any | None, Any]:
            return split_timesteps(lambda: network.sized(shapes), shapes["timestep"][0])

        key = {"part": "all but timesteps", "shapes": shapes}
        super().__init__(network.compiled(key, lambda: graphs()[1], streams=streams))
        if ROW_TIME_VALUES in self.requests[0].inputs:
            key = {"part": "timesteps", "shapes": shapes}
            (self._per_timestep,) = network.compiled(key, lambda: graphs()[0], precise=True)

    def inputs(self, groups: list[dict[str, Array]]) -> list[dict[str, Array]]:
        """Return the inputs of each stream, with those that depend on the timestep."""
        return [{**group, **self._time_values(group)} for group in groups]

    def _time_values(self, group: Mapping[str, Array]) -> dict[str, Array]:
        if self._per_timestep is None:
            return {}
        names, rows = self._per_timestep.output_names, len(group["timestep"])
        outputs = run([self._per_timestep], [group], names)
        return {ROW_TIME_VALUES: np.concatenate([outputs[name].reshape(rows, -1) for name in names], axis=1)}
