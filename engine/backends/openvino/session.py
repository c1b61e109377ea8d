"""A denoising session on OpenVINO: computes what stays the same once, and every step does the rest.

`partition` cuts the graph into parts. With many images, each stream takes some of them. `CALOTYPE_DISABLE` turns off
`kept_inputs`, `time_table` or `shared_guidance`, so that the gain of each can be measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import BackendError, InputError, first_line
from ...system.lru_cache import LruCache
from ..base import Array, Arrays, inputs_of_call
from .graph import Dependency
from .network import Network
from .partition import DEEP, ROW_TIME_VALUES, TIME_VALUES, Partition, partition_graph, split_deep_layers
from .requests import Compiled, Request, run, streams_for
from .rewrites import disabled_optimizations

_TABLES = 16  # cached blocks of timesteps: 2 MB each for Stable Diffusion 1
_BLOCKS = (1, 4, 8, 16, 32)  # timesteps that run through their part at once: one compilation serves many step counts

Shapes = Mapping[str, tuple[int, ...]]


class CompiledPartition(Compiled):
    """The compiled parts for one kind of session.

    Attributes:
        per_step: a request for each stream.
        shallow: the same for steps that reuse the deep layers' values; empty if none do.
        time_input: the input of `per_step` for what depends on the timestep; None if it has no such input.
        tables: the time values of timesteps, if they depend on nothing else.
        owner: the token of the session whose constants the inputs of `per_step` hold.
    """

    def __init__(self, network: Network, key: Mapping[str, Any], constants: tuple[str, ...], streams: int) -> None:
        """Compile the parts for each step. `key` has everything that the graphs depend on besides the network."""
        self._network, self._key, self._constants, self._streams = network, key, constants, streams
        self._partition: Partition | None = None
        self._deep_and_shallow: tuple[Any, Any] | None = None
        self.per_image: list[Request] = []
        self._per_schedule: dict[int, Request] = {}
        self.tables: LruCache[Array] = LruCache(_TABLES)
        self.owner: object = None
        self.shallow: list[Request] = []
        if not key["cached"]:
            self.per_step = network.compiled(key, lambda: self._graphs().per_step, streams=streams)
        else:
            self.per_step = network.compiled({**key, "part": DEEP}, lambda: self._deep_graphs()[0], streams=streams)
            self.shallow = network.compiled({**key, "part": "shallow"}, lambda: self._deep_graphs()[1], streams=streams)
        super().__init__([*self.per_step, *self.shallow])
        inputs = self.per_step[0].inputs
        self.time_input = next((name for name in (TIME_VALUES, ROW_TIME_VALUES) if name in inputs), None)

    def compile_per_image(self, shapes: Shapes, outputs: list[str]) -> list[Request]:
        """Return a request for each stream for what stays the same."""
        if not self.per_image:
            key = {"part": "per_image", "shapes": shapes, "outputs": outputs}
            self.per_image = self._network.compiled(key, lambda: self._graphs().per_image, streams=self._streams)
        return self.per_image

    def per_schedule(self, rows: int, shapes: Shapes) -> Request:
        """Return the request for this number of timesteps. It computes in float32."""
        if rows not in self._per_schedule:
            # An input that varies is not in this part, so `varying` decides which values the part computes.
            key = {"part": "per_schedule", "shapes": shapes, "varying": self._key["varying"]}
            (self._per_schedule[rows],) = self._network.compiled(
                key, lambda: self._graphs().per_schedule(rows), precise=True
            )
        return self._per_schedule[rows]

    def release(self) -> None:
        """Free the activation buffers. Inputs stay, and so do the owner's constants."""
        for request in (*self.per_step[:1], *self.shallow[:1], *self.per_image[:1], *self._per_schedule.values()):
            request.release()

    def release_graphs(self) -> None:
        """Free the graphs, which hold copies of the weights."""
        self._partition = self._deep_and_shallow = None

    def _graphs(self) -> Partition:
        """Cut the graph, if the caches lack a part."""
        if self._partition is None:
            shapes: Shapes = self._key["shapes"]
            inputs = dict.fromkeys(self._constants, Dependency.IMAGE) | {"timestep": Dependency.TIME}
            inputs |= dict.fromkeys(("sample", *self._key["varying"]), Dependency.SAMPLE)

            def sizing(rows: int) -> Any:
                return self._network.sized({name: (rows, *shape[1:]) for name, shape in shapes.items()})

            self._partition = partition_graph(sizing, shapes["timestep"][0], inputs, self._key["different"])
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
        disabled = disabled_optimizations()
        self._network = network
        self._constants = {name: np.ascontiguousarray(array) for name, array in constants.items()}
        self._timesteps = timesteps
        self._guided, self._cache_interval = guided, cache_interval
        self._deep_call = 0  # the last call that computed the deep layers
        self._deep: list[Array] = []  # their outputs, for each stream
        self._token = object()  # identifies this session as the owner of constants without keeping it alive
        self._half_sample = guided and "shared_guidance" not in disabled  # the parts take one half of the sample
        self._keep_constants, self._use_table = "kept_inputs" not in disabled, "time_table" not in disabled
        self._table: dict[int, Array] = {}  # the first call of a block -> its time values, a row for each call
        self._images: list[Array] = []  # of each stream
        self._rows: list[Array] = []  # of each stream, in the batch
        self._parts_key: dict[str, Any] = {}
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
        if not self._rows:
            count = len(sample)
            self._images = np.split(np.arange(count), streams_for(count))
            self._rows = [np.concatenate([some, some + count]) if self._guided else some for some in self._images]
        varying = {**changing, **({} if self._keep_constants else self._constants)}
        if not self._use_table:
            varying["timestep"] = np.full(sum(map(len, self._rows)), self._timesteps[call])
        with self._network.lock:
            parts = self._compiled(sample, varying)
            if parts.owner is not self._token:
                parts.owner = None  # an interrupt must not leave the old owner with half of its constants
                self._load_constants(parts)
                parts.owner = self._token
            inputs = []
            for images, rows in zip(self._images, self._rows, strict=True):
                group = self._rows_of(varying, rows)
                group["sample"] = sample[images if self._half_sample or not self._guided else rows % len(sample)]
                group["timestep"] = np.full(len(rows), self._timesteps[call])  # an input only if no table holds it
                if parts.time_input is not None:
                    values = self._time_values(parts, call)
                    group[parts.time_input] = values if parts.time_input == TIME_VALUES else values[rows]
                inputs.append(group)
            outputs = self._run_step(parts, call, inputs)
            parts.release_graphs()
        if not self._guided or len(self._rows) == 1:
            return outputs
        order = np.argsort(np.concatenate(self._rows))  # from the streams' order to the batch's
        return {name: array[order] for name, array in outputs.items()}

    def _rows_of(self, arrays: Arrays, rows: Array) -> dict[str, Array]:
        """Return a stream's rows of each array, without a copy if there is one stream."""
        return dict(arrays) if len(self._rows) == 1 else {name: array[rows] for name, array in arrays.items()}

    def _run_step(self, parts: CompiledPartition, call: int, inputs: list[dict[str, Array]]) -> dict[str, Array]:
        """Run one step: all layers, or only the shallow ones if the deep layers' values are reused."""
        names = self._network.output_names
        if self._cache_interval == 1:
            return run(parts.per_step, inputs, names)
        if not self._deep or call - self._deep_call >= self._cache_interval:
            self._deep_call = call
            outputs = run(parts.per_step, inputs, [*names, DEEP])
            self._deep = np.split(outputs.pop(DEEP), len(inputs))
            return outputs
        inputs = [{**group, DEEP: deep} for group, deep in zip(inputs, self._deep, strict=True)]
        return run(parts.shallow, inputs, names)

    def _compiled(self, sample: Array, varying: Arrays) -> CompiledPartition:
        """Return the compiled parts for these shapes, which are the same at every call."""
        network, constants, streams = self._network, tuple(self._constants), len(self._rows)
        if not self._parts_key:
            rows = len(self._rows[0])
            arrays = {**self._constants, **varying, "sample": sample}
            self._parts_key = {
                "part": "per_step",
                "cached": self._cache_interval > 1,
                "shapes": {name: (rows, *array.shape[1:]) for name, array in arrays.items()} | {"timestep": (rows,)},
                "varying": sorted(varying),
                "different": sorted(self._different(varying)) if self._half_sample else None,
            }
        key = self._parts_key
        parts = network.cached(f"{streams} {key}", lambda: CompiledPartition(network, key, constants, streams))
        assert isinstance(parts, CompiledPartition)
        return parts

    def _different(self, varying: Arrays) -> set[str]:
        """Return the inputs whose two halves differ."""
        half = len(next(iter(self._constants.values()))) // 2
        unlike = {name for name, array in self._constants.items() if not np.array_equal(array[:half], array[half:])}
        return unlike | {name for name in varying if name != "timestep"}

    def _load_constants(self, parts: CompiledPartition) -> None:
        """Compute what stays the same, and write it into the inputs of the requests for each step."""
        # Only an `Edge.name` has a colon.
        computed = sorted(name for names in parts.per_step[0].input_names for name in names if ":" in name)
        groups = [self._rows_of(self._constants, rows) for rows in self._rows]
        if computed:
            requests = parts.compile_per_image({name: array.shape for name, array in groups[0].items()}, computed)
            for name, array in run(requests, groups, computed).items():
                for group, values in zip(groups, np.split(array, len(groups)), strict=True):
                    group[name] = values
        for i, group in enumerate(groups):
            for request in (parts.per_step[i], *parts.shallow[i : i + 1]):
                for name in request.inputs.keys() & group.keys():
                    request.inputs[name][...] = group[name]

    def _time_values(self, parts: CompiledPartition, call: int) -> Array:
        """Return the input that depends on the call's timestep.  # [1, width], or ROW_TIME_VALUES: [rows, width]"""
        length = next((n for n in _BLOCKS if n >= len(self._timesteps)), _BLOCKS[-1])
        first = call - call % length
        if first not in self._table:
            timesteps = np.resize(self._timesteps[first : first + length], length)  # repeats fill the last block
            if parts.time_input == TIME_VALUES:  # they depend on nothing else: the next image may have the same ones
                self._table[first] = parts.tables(timesteps.tobytes(), lambda: self._time_table(parts, timesteps))
            else:
                self._table[first] = self._time_table(parts, timesteps)
        values: Array = self._table[first][call - first]
        return values

    def _time_table(self, parts: CompiledPartition, timesteps: Array) -> Array:
        """Compute the time values of some calls.  # [calls, 1, width], or [calls, rows of the batch, width]"""
        shared = parts.time_input == TIME_VALUES
        # Time values may also depend on text and sizes, which are vectors, but never on arrays as large as an image.
        vectors = {} if shared else {n: a for n, a in self._constants.items() if a.ndim == 2}
        count = 1 if shared else sum(map(len, self._rows))
        inputs = {n: np.concatenate([a] * len(timesteps)) for n, a in vectors.items()}
        inputs["timestep"] = np.repeat(timesteps, count)
        rows = len(timesteps) * count
        request = parts.per_schedule(rows, {n: array.shape for n, array in inputs.items()})
        if missing := [min(names) for names in request.input_names if not names & inputs.keys()]:
            raise BackendError(f"the timesteps' part needs {', '.join(missing)}: expected only timesteps and vectors")
        outputs = run([request], [inputs], request.output_names)
        table: Array = np.concatenate([outputs[name].reshape(rows, -1) for name in request.output_names], axis=1)
        return table.reshape(len(timesteps), count, -1)
