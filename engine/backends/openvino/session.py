"""A denoising session on OpenVINO: the parts of the network that `partition` cuts, for all steps of a batch.

What stays the same for an image is computed at its first step. With many images, each stream takes some of them.
`CALOTYPE_DISABLE=shared_guidance` computes both halves of the guidance, to measure the gain of sharing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import InputError, first_line
from ...plan.image_prompts.style import STYLE
from ...system.lru_cache import LruCache
from ...system.switches import disabled_optimizations
from ..base import Array, Arrays, inputs_of_call
from .network import Network
from .partition import DEEP, ROW_TIME_VALUES, TIME_VALUES, Partition, partition_graph, split_deep_layers
from .requests import Compiled, Request, run, streams_for

_TABLE_BYTES = 32 << 20  # of cached schedules: Stable Diffusion 1 takes 70 kB for each timestep

Shapes = Mapping[str, tuple[int, ...]]


class CompiledPartition(Compiled):
    """The compiled parts for one kind of session.

    Attributes:
        per_step: a request for each stream.
        shallow: the same for steps that reuse the deep layers' values; empty if none do.
    """

    def __init__(self, network: Network, key: Mapping[str, Any], streams: int) -> None:
        """Compile the parts for each step. `key` has everything that the graphs depend on besides the network."""
        self._network, self._key = network, key
        self._partition: Partition | None = None
        self._deep_and_shallow: tuple[Any, Any] | None = None
        self._per_image: list[Request] = []
        self._per_timestep: Request | None = None
        self._tables: LruCache[Array] = LruCache(_TABLE_BYTES, lambda table: table.nbytes)
        self.shallow: list[Request] = []
        if not key["cached"]:
            self.per_step = network.compiled(key, lambda: self._graphs().per_step, streams=streams)
        else:
            self.per_step = network.compiled({**key, "part": DEEP}, lambda: self._deep_graphs()[0], streams=streams)
            self.shallow = network.compiled({**key, "part": "shallow"}, lambda: self._deep_graphs()[1], streams=streams)
        super().__init__([*self.per_step, *self.shallow])

    def image_values(self, groups: list[dict[str, Array]]) -> list[dict[str, Array]]:
        """Return the values that the steps of an image share, for each stream's inputs."""
        names = sorted(name for name in self.per_step[0].inputs if ":" in name)  # only an `Edge.name` has a colon
        if not names:
            return [{} for _ in groups]
        if len(self._per_image) < len(groups):
            shapes = {name: array.shape for name, array in groups[0].items() if name in self._key["constants"]}
            # Of clips, values have a row for each position of the sample, which is no constant.
            outputs = {name: self.per_step[0].inputs[name].shape for name in names}
            key = {"part": "per_image", "shapes": shapes, "outputs": outputs}
            self._per_image = self._network.compiled(key, lambda: self._graphs().per_image, streams=len(groups))
        values = {
            n: np.split(array, len(groups)) for n, array in run(self._per_image[: len(groups)], groups, names).items()
        }
        return [{name: arrays[i] for name, arrays in values.items()} for i in range(len(groups))]

    def time_values(self, timesteps: Array, groups: list[dict[str, Array]]) -> list[dict[str, Array]]:
        """Return the input that depends on the timestep for each stream.  # [calls, rows, width], in float32

        The next image may have the same timesteps.
        """
        if TIME_VALUES in self.per_step[0].inputs:
            table = self._tables(timesteps.tobytes(), lambda: self._time_table(timesteps, {}, 1))
            return [{TIME_VALUES: table} for _ in groups]
        if ROW_TIME_VALUES not in self.per_step[0].inputs:
            return [{} for _ in groups]
        return [{ROW_TIME_VALUES: self._time_table(timesteps, each, len(each["timestep"]))} for each in groups]

    def _time_table(self, timesteps: Array, constants: Arrays, rows: int) -> Array:
        if self._per_timestep is None:
            key = {"part": "per_timestep", "shapes": {"timestep": (rows,)}, "constants": self._key["constants"]}
            (self._per_timestep,) = self._network.compiled(key, lambda: self._graphs().per_timestep, precise=True)
        request, values = self._per_timestep, []
        for timestep in timesteps:
            outputs = run([request], [{**constants, "timestep": timestep}], request.output_names)
            values.append(np.concatenate([outputs[n].reshape(rows, -1) for n in request.output_names], axis=1))
        return np.stack(values)

    def release(self) -> None:
        """Free the activation buffers."""
        firsts = (*self.per_step[:1], *self.shallow[:1], *self._per_image[:1], self._per_timestep)
        for request in filter(None, firsts):
            request.release()

    def release_graphs(self) -> None:
        """Free the graphs, which hold copies of the weights."""
        self._partition = self._deep_and_shallow = None

    def _graphs(self) -> Partition:
        """Cut the graph, if the caches lack a part."""
        if self._partition is None:
            shapes: Shapes = self._key["shapes"]

            def sizing(rows: int) -> Any:
                return self._network.sized({name: (rows, *shape[1:]) for name, shape in shapes.items()})

            rows, constants = shapes["timestep"][0], self._key["constants"]
            self._partition = partition_graph(sizing, rows, constants, self._key["different"])
        return self._partition

    def _deep_graphs(self) -> tuple[Any, Any]:
        self._deep_and_shallow = self._deep_and_shallow or split_deep_layers(self._graphs().per_step)
        return self._deep_and_shallow


class OpenVinoSession:
    """Steps in which only the sample, its timestep and the residuals of ControlNets change."""

    def __init__(
        self, network: Network, constants: Arrays, timesteps: Array, *, guided: bool, cache_interval: int
    ) -> None:
        """Take the arguments of `calotype.backends.session.DenoisingSession`."""
        self._network = network
        self._constants, self._timesteps = constants, timesteps
        self._guided, self._cache_interval = guided, cache_interval
        self._coupled = np.any(constants.get(STYLE, 0))  # then all rows of the batch are in one stream
        self._half_sample = guided and "shared_guidance" not in disabled_optimizations()
        self._deep_call = 0  # the last call that computed the deep layers
        self._deep: list[Array] = []  # their outputs, for each stream
        self._image_values: list[dict[str, Array]] = []  # for each stream
        self._time_values: list[dict[str, Array]] = []  # for each stream, a row for each call
        self._key: dict[str, Any] = {}  # of the compiled parts
        self._succeeded = False  # has a call succeeded?

    def __call__(self, call: int, sample: Array, changing: Arrays) -> dict[str, Array]:
        """Run one call, as `Session`.

        If the parts cannot be compiled or run, the session runs the full graph from then on, and the report says so.
        """
        if self._network.notes and self._cache_interval == 1:
            return self._run_full_graph(call, sample, changing)
        try:
            outputs = self._run_parts(call, sample, changing)
        except Exception as failed:
            if self._succeeded or self._cache_interval > 1 or isinstance(failed, InputError):
                raise
            outputs = self._run_full_graph(call, sample, changing)  # if this fails too, the backend fails
            self._network.notes = (f"openvino runs the {self._network.name} as one graph: {first_line(failed)}",)
        self._succeeded = True
        return outputs

    def _run_full_graph(self, call: int, sample: Array, changing: Arrays) -> dict[str, Array]:
        timestep = self._timesteps[call]
        return self._network(inputs_of_call(self._constants, timestep, sample, changing, guided=self._guided))

    def _run_parts(self, call: int, sample: Array, changing: Arrays) -> dict[str, Array]:
        count, streams = len(sample), 1 if self._coupled else streams_for(len(sample))
        images = np.split(np.arange(count), streams)
        rows = [np.concatenate([some, some + count]) if self._guided else some for some in images]
        inputs = inputs_of_call(self._constants, self._timesteps[call], sample, changing, guided=self._guided)
        groups = [inputs] if streams == 1 else [{n: array[some] for n, array in inputs.items()} for some in rows]
        if self._half_sample:
            for group, some in zip(groups, images, strict=True):
                group["sample"] = sample[some]
        with self._network.lock:
            parts = self._ready(call, groups, streams)
            outputs = self._run_step(parts, call, groups)
        if not self._guided or streams == 1:
            return outputs
        order = np.argsort(np.concatenate(rows))  # from the streams' order to the batch's
        return {name: array[order] for name, array in outputs.items()}

    def _ready(
        self, call: int, groups: list[dict[str, Array]], streams: int, *, releases_last: bool = True
    ) -> CompiledPartition:
        """Return the compiled parts, and complete the inputs of each group by the values that steps share."""
        parts = self._compiled(groups, streams, releases_last)
        self._image_values = self._image_values or parts.image_values(groups)
        self._time_values = self._time_values or parts.time_values(self._timesteps, groups)
        for group, kept, timed in zip(groups, self._image_values, self._time_values, strict=True):
            group |= {**kept, **{name: table[call] for name, table in timed.items()}}
        parts.release_graphs()
        return parts

    def runs_in_a_stream(self, sample: Array) -> bool:
        """Return whether one stream can run a call of this batch: a single image, in parts that always run in full."""
        return len(sample) == 1 and self._cache_interval == 1 and not self._network.notes

    def in_a_stream(
        self, call: int, sample: Array, changing: Arrays, streams: int
    ) -> tuple[CompiledPartition, dict[str, Array]]:
        """Return the parts compiled for several streams, and the inputs of this call. The caller holds the lock."""
        inputs = inputs_of_call(self._constants, self._timesteps[call], sample, changing, guided=self._guided)
        if self._half_sample:
            inputs["sample"] = sample
        return self._ready(call, [inputs], streams, releases_last=False), inputs

    def _run_step(self, parts: CompiledPartition, call: int, groups: list[dict[str, Array]]) -> dict[str, Array]:
        """Run one step: all layers, or only the shallow ones if the deep layers' values are reused."""
        names = self._network.output_names
        if self._cache_interval == 1:
            return run(parts.per_step, groups, names)
        if not self._deep or call - self._deep_call >= self._cache_interval:
            self._deep_call = call
            outputs = run(parts.per_step, groups, [*names, DEEP])
            self._deep = np.split(outputs.pop(DEEP), len(groups))
            return outputs
        groups = [{**group, DEEP: deep} for group, deep in zip(groups, self._deep, strict=True)]
        return run(parts.shallow, groups, names)

    def _compiled(self, groups: list[dict[str, Array]], streams: int, releases_last: bool) -> CompiledPartition:
        """Return the compiled parts for these shapes, which are the same at every call."""
        network = self._network
        if not self._key:
            self._key = {
                "part": "per_step",
                "cached": self._cache_interval > 1,
                "shapes": {name: (len(groups[0]["timestep"]), *array.shape[1:]) for name, array in groups[0].items()},
                "constants": sorted(self._constants),
                "different": sorted(groups[0].keys() - self._equal_halves()) if self._half_sample else None,
            }
        key = self._key
        parts = network.cached(
            f"{streams} {key}", lambda: CompiledPartition(network, key, streams), releases_last=releases_last
        )
        assert isinstance(parts, CompiledPartition)
        return parts

    def _equal_halves(self) -> set[str]:
        """Return the inputs whose two halves are always equal."""
        half = len(next(iter(self._constants.values()))) // 2
        equal = {name for name, array in self._constants.items() if np.array_equal(array[:half], array[half:])}
        return equal | {"sample", "timestep"}
