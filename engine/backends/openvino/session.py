"""A denoising session on OpenVINO: computes what stays the same once, and every step does the rest.

`partition` cuts the graph into parts. With many images, each stream takes some of them. With few and small images, each
stream takes one half of the guidance. `CALOTYPE_DISABLE` turns off `kept_inputs`, `time_table`, `shared_guidance` or
`parallel_guidance`, so that the gain of each can be measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import BackendError, InputError, first_line
from ...system.lru_cache import LruCache
from ..base import Array, Arrays, inputs_of_call
from .graph import Dependency
from .partition import DEEP, ROW_TIME_VALUES, TIME_VALUES, Partition, partition_graph, split_deep_layers
from .requests import Request, run, streams_for
from .rewrites import disabled_optimizations

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .network import Network

_SMALL = 3e10  # bytes of weights times latent pixels: up to here steps are short, and waiting costs time (measured)
_TABLES = 16  # cached blocks of timesteps: 2 MB each for Stable Diffusion 1
_BLOCKS = (1, 4, 8, 16, 32)  # timesteps that run through their part at once: one compilation serves many step counts


@dataclass(frozen=True, kw_only=True)
class StreamSlice:
    """The part of the batch that one stream computes: `count` rows, and their rows of the sample."""

    rows: slice | Array
    samples: slice | Array
    count: int


@dataclass(kw_only=True)
class CompiledPartition:
    """The compiled parts for one kind of session.

    Attributes:
        per_step: a request for each stream.
        shallow: a request for each stream, for steps that reuse the deep layers' values.
        partition: cuts the graph; called only for a part that the caches do not have.
        release_graphs: frees the graphs, which hold copies of the weights.
        varying: the inputs, besides the sample, that change at every step.
        time_input: the input of `per_step` for what depends on the timestep; None if it has no such input.
        per_image: a request for each stream for what stays the same, if there is such a part.
        per_schedule: the requests for timesteps, by their number of rows.
        tables: the time values of timesteps, if they depend on nothing else.
        owner: the token of the session whose constants the inputs of `per_step` hold.
    """

    per_step: list[Request]
    shallow: list[Request]
    partition: Callable[[], Partition]
    release_graphs: Callable[[], None]
    varying: list[str]
    time_input: str | None
    per_image: list[Request] = field(default_factory=list)
    per_schedule: dict[int, Request] = field(default_factory=dict)
    tables: LruCache[Array] = field(default_factory=lambda: LruCache(_TABLES))
    owner: object = None

    def requests(self) -> list[Request]:
        """Return the requests that hold most of the weights."""
        return [*self.per_step, *self.shallow]

    def release(self) -> None:
        """Free the activation buffers. Inputs stay, and so do the owner's constants."""
        for request in (*self.per_step[:1], *self.shallow[:1], *self.per_image[:1], *self.per_schedule.values()):
            request.release()


class OpenVinoSession:
    """Steps in which only the sample, its timestep and the residuals of ControlNets change."""

    def __init__(
        self, runner: Network, constants: Arrays, timesteps: Array, *, guided: bool, cache_interval: int
    ) -> None:
        """Take the arguments of `calotype.backends.session.DenoisingSession`."""
        disabled = disabled_optimizations()
        self._runner = runner
        self._constants = {name: np.ascontiguousarray(array) for name, array in constants.items()}
        self._timesteps = np.asarray(timesteps, dtype=np.float32)
        self._guided, self._cache_interval = guided, cache_interval
        self._deep_call = 0  # the last call that computed the deep layers
        self._deep: list[Array] = []  # their outputs, for each stream
        self._token = object()  # identifies this session as the owner of constants without keeping it alive
        self._split_guidance = guided and "parallel_guidance" not in disabled  # if the images are few and small
        self._half_sample = guided and "shared_guidance" not in disabled  # else: the batch's sample is one half
        self._keep_constants, self._use_table = "kept_inputs" not in disabled, "time_table" not in disabled
        self._table: dict[int, Array] = {}  # the first call of a block -> its time values, a row for each call
        self._slices: list[StreamSlice] = []  # for each stream
        self._rows = 0  # of the whole batch
        self._succeeded = False  # has a call succeeded?
        self._order: Array | None = None  # sorts the streams' rows into the batch's order; None if they are sorted
        self._key: tuple[str, Callable[[], CompiledPartition]] | None = None  # of the compiled parts, and their maker

    def __call__(self, call: int, sample: Array, changing: Arrays) -> dict[str, Array]:
        """Run one call and return the network's outputs.

        If the parts cannot be compiled or run, the session runs the full graph from then on, and the report says so.

        Args:
            call: the number of the call, from 0.
            sample: [B, ...], with and without guidance.
            changing: other inputs that change at every call, for all rows: [B, ...], or [2B, ...].
        """
        if self._runner.notes and self._cache_interval == 1:
            return self._run_full_graph(call, sample, changing)
        try:
            outputs = self._run_parts(call, sample, changing)
        except Exception as failed:
            if self._succeeded or self._cache_interval > 1 or isinstance(failed, InputError):
                raise
            outputs = self._run_full_graph(call, sample, changing)  # if this fails too, the backend fails
            self._runner.notes = (f"openvino runs the {self._runner.name} as one graph: {first_line(failed)}",)
        self._succeeded = True
        return outputs

    def _run_full_graph(self, call: int, sample: Array, changing: Arrays) -> dict[str, Array]:
        timestep = self._timesteps[call]
        return self._runner(inputs_of_call(self._constants, timestep, sample, changing, guided=self._guided))

    def _run_parts(self, call: int, sample: Array, changing: Arrays) -> dict[str, Array]:
        slices = self._slices or self._split(sample)
        varying = {**changing}
        if not self._keep_constants:
            varying |= self._constants
        if not self._use_table:
            varying["timestep"] = np.full(self._rows, self._timesteps[call])
        with self._runner.lock:
            parts = self._compiled(sample, varying)
            if parts.owner is not self._token:
                parts.owner = None  # an interrupt must not leave the old owner with half of its constants
                self._load_constants(parts)
                parts.owner = self._token
            time_values = self._time_values(parts, call)
            inputs = []
            for each in slices:
                group = {name: array[each.rows] for name, array in varying.items()}
                for name, row in time_values.items():
                    group[name] = row if name == TIME_VALUES else row[each.rows]
                group["sample"] = sample[each.samples]
                group["timestep"] = np.full(each.count, self._timesteps[call])  # an input only if no table holds it
                inputs.append(group)
            outputs = self._run_step(parts, call, inputs)
            parts.release_graphs()
        if self._order is None:
            return outputs
        return {name: array[self._order] for name, array in outputs.items()}

    def _split(self, sample: Array) -> list[StreamSlice]:
        """Split the batch at the first call: each stream takes some images, or one half of few and small ones."""
        count, pixels = len(sample), sample[0, 0].size
        few = streams_for(count) < streams_for(2 * count) and self._runner.weights_bytes * count * pixels <= _SMALL
        if self._split_guidance and few:
            self._half_sample = False
            groups = np.split(np.arange(2 * count), streams_for(2 * count))
        else:
            split = np.split(np.arange(count), streams_for(count))
            groups = [np.concatenate([some, some + count]) if self._guided else some for some in split]
        order = np.concatenate(groups)
        self._rows = len(order)
        self._order = None if (order[1:] > order[:-1]).all() else np.argsort(order)
        for rows in groups:
            samples = rows[: len(rows) // 2] if self._half_sample else rows % count
            self._slices.append(StreamSlice(rows=_slice(rows), samples=_slice(samples), count=len(rows)))
        return self._slices

    def _run_step(self, parts: CompiledPartition, call: int, inputs: list[dict[str, Array]]) -> dict[str, Array]:
        """Run one step: all layers, or only the shallow ones if the deep layers' values are reused."""
        names = self._runner.output_names
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
        if self._key is None:
            rows = self._slices[0].count
            arrays = {**self._constants, **varying, "sample": sample}
            shapes = {name: (rows, *array.shape[1:]) for name, array in arrays.items()} | {"timestep": (rows,)}
            key = {
                "part": "per_step",
                "cached": self._cache_interval > 1,
                "shapes": shapes,
                "varying": sorted(varying),
                "different": sorted(self._different(varying)) if self._half_sample else None,
            }
            runner, constants, streams = self._runner, tuple(self._constants), len(self._slices)
            self._key = f"{streams} {key}", lambda: _compile(runner, constants, key, streams)
        parts = self._runner.cached(*self._key)
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
        groups = [{name: array[each.rows] for name, array in self._constants.items()} for each in self._slices]
        values = {}
        if computed:
            if not parts.per_image:
                shapes = {name: array.shape for name, array in groups[0].items()}
                key = {"part": "per_image", "shapes": shapes, "outputs": computed}
                parts.per_image = self._runner.compiled(key, lambda: parts.partition().per_image, streams=len(groups))
            values = {n: np.split(array, len(groups)) for n, array in run(parts.per_image, groups, computed).items()}
        for i, group in enumerate(groups):
            group |= {name: arrays[i] for name, arrays in values.items()}
            for request in (parts.per_step[i], *parts.shallow[i : i + 1]):
                for name in request.inputs.keys() & group.keys():
                    request.inputs[name][...] = group[name]

    def _time_values(self, parts: CompiledPartition, call: int) -> dict[str, Array]:
        """Return the input that depends on the call's timestep.  # [1, width], or ROW_TIME_VALUES: [rows, width]"""
        if parts.time_input is None:
            return {}
        length = next((n for n in _BLOCKS if n >= len(self._timesteps)), _BLOCKS[-1])
        first = call - call % length
        if first not in self._table:
            timesteps = np.resize(self._timesteps[first : first + length], length)  # repeats fill the last block
            if parts.time_input == TIME_VALUES:  # they depend on nothing else: the next image may have the same ones
                self._table[first] = parts.tables(timesteps.tobytes(), lambda: self._time_table(parts, timesteps))
            else:
                self._table[first] = self._time_table(parts, timesteps)
        return {parts.time_input: self._table[first][call - first]}

    def _time_table(self, parts: CompiledPartition, timesteps: Array) -> Array:
        """Compute the time values of some calls.  # [calls, 1, width], or [calls, rows of the batch, width]"""
        length = len(timesteps)
        shared = parts.time_input == TIME_VALUES
        # Time values may also depend on text and sizes, which are vectors, but never on arrays as large as an image.
        vectors = {} if shared else {n: a for n, a in self._constants.items() if a.ndim == 2}
        count = 1 if shared else self._rows
        inputs = {n: np.concatenate([a] * length) for n, a in vectors.items()}
        inputs["timestep"] = np.repeat(timesteps, count)
        rows = length * count
        if rows not in parts.per_schedule:
            shapes = {n: array.shape for n, array in inputs.items()}
            # An input that varies is not in this part, so `varying` decides which values the part computes.
            key = {"part": "per_schedule", "shapes": shapes, "varying": parts.varying}
            (parts.per_schedule[rows],) = self._runner.compiled(
                key, lambda: parts.partition().per_schedule(rows), precise=True
            )
        request = parts.per_schedule[rows]
        if missing := [min(names) for names in request.input_names if not names & inputs.keys()]:
            raise BackendError(f"the timesteps' part needs {', '.join(missing)}: expected only timesteps and vectors")
        outputs = run([request], [inputs], request.output_names)
        table: Array = np.concatenate([outputs[name].reshape(rows, -1) for name in request.output_names], axis=1)
        return table.reshape(length, count, -1)


def _slice(indices: Array) -> slice | Array:
    """Return consecutive indices as a slice, which needs no copy, and all others unchanged."""
    first, last = int(indices[0]), int(indices[-1])
    return slice(first, last + 1) if np.array_equal(indices, np.arange(first, last + 1)) else indices


def _compile(runner: Network, constants: Sequence[str], key: Mapping[str, Any], streams: int) -> CompiledPartition:
    """Compile the parts for `key`. Keeps no reference to the session."""
    graphs: list[Partition] = []
    deep_graphs: list[Any] = []

    def partition() -> Partition:
        if not graphs:
            shapes = key["shapes"]
            inputs = dict.fromkeys(constants, Dependency.IMAGE) | {"timestep": Dependency.TIME}
            inputs |= dict.fromkeys(("sample", *key["varying"]), Dependency.SAMPLE)
            rows = shapes["timestep"][0]
            graphs.append(
                partition_graph(lambda n: runner.sized(_with_rows(shapes, n)), rows, inputs, key["different"])
            )
        return graphs[0]

    def split() -> list[Any]:
        deep_graphs[:] = deep_graphs or split_deep_layers(partition().per_step)
        return deep_graphs

    def release_graphs() -> None:
        graphs.clear()
        deep_graphs.clear()

    try:
        if not key["cached"]:
            per_step, shallow = runner.compiled(key, lambda: partition().per_step, streams=streams), []
        else:
            per_step = runner.compiled({**key, "part": DEEP}, lambda: split()[0], streams=streams)
            shallow = runner.compiled({**key, "part": "shallow"}, lambda: split()[1], streams=streams)
    except BaseException:
        release_graphs()
        raise
    return CompiledPartition(
        per_step=per_step,
        shallow=shallow,
        partition=partition,
        release_graphs=release_graphs,
        varying=key["varying"],
        time_input=next((name for name in (TIME_VALUES, ROW_TIME_VALUES) if name in per_step[0].inputs), None),
    )


def _with_rows(shapes: Mapping[str, tuple[int, ...]], rows: int) -> dict[str, tuple[int, ...]]:
    return {name: (rows, *shape[1:]) for name, shape in shapes.items()}
