"""The calls of a denoiser for one batch on OpenVINO: what stays is computed once, and every call does the rest.

The graph is taken apart by `partition`. Of many pictures, each stream has its share; of few and small ones, a half of
the guidance. What `CALOTYPE_DISABLE` names (`kept_inputs`, `time_table`, `shared_guidance`, `parallel_guidance`) is
left undone, so that each can be measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import BackendError, InputError, first_line
from ...system.lru_cache import LruCache
from .graph import Dependency
from .partition import DEEP, OWN_TIMES, TIMES, Partition, partition_graph, split_deep_layers
from .requests import Request, run, streams_for
from .rewrites import disabled_optimizations

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..base import Arrays
    from .compiler import Compiler

Array = np.ndarray[Any, Any]

_SMALL = 3e10  # bytes of weights times places of the latents: up to here calls are short, and waiting shows (measured)
_TABLES = 16  # blocks of timesteps whose numbers are remembered: 2 MB each of Stable Diffusion 1's
_BLOCKS = (1, 4, 8, 16, 32)  # timesteps that go through their part at once: one compilation for many step counts


@dataclass(frozen=True, kw_only=True)
class StreamSlice:
    """What one stream does: these rows of the batch, `count` of them, which take these of the sample."""

    rows: slice | Array
    samples: slice | Array
    count: int


@dataclass(kw_only=True)
class CompiledPartition:
    """The compiled parts for one kind of series.

    Attributes:
        each: a request for each stream.
        shallow: the requests for calls between, where the deep layers' numbers are used again.
        parts: takes the graph apart; nothing is done where all that is asked of it was compiled before.
        forget: lets go of the graphs, which hold weights of their own.
        times_of: the input of `each` for what hangs on the timestep; None where nothing does.
        once: a request for each stream for what stays, where it was needed.
        times: the requests for timesteps, by how many rows they take.
        tables: what they made of timesteps that nothing else was said with.
        varying: the inputs that are others at every call, beside the sample.
        owner: the token of the series whose numbers the inputs of `each` hold.
    """

    each: list[Request]
    shallow: list[Request]
    parts: Callable[[], Partition]
    forget: Callable[[], None]
    varying: list[str]
    times_of: str | None
    once: list[Request] = field(default_factory=list)
    times: dict[int, Request] = field(default_factory=dict)
    tables: LruCache[Array] = field(default_factory=lambda: LruCache(_TABLES))
    owner: object = None

    def requests(self) -> list[Request]:
        """Those that hold the weights: what is computed once takes few of them."""
        return [*self.each, *self.shallow]

    def release(self) -> None:
        """Free the buffers of activations. Inputs, and so what `owner` put there, stay."""
        for request in (*self.each[:1], *self.shallow[:1], *self.once[:1], *self.times.values()):
            request.release()


class OpenVinoSession:
    """Calls with the same inputs but for the sample, its timestep, and what ControlNets add."""

    def __init__(self, runner: Compiler, given: Arrays, timesteps: Array, *, guided: bool, cache_interval: int) -> None:
        """As `calotype.backends.session.DenoisingSession`."""
        left = disabled_optimizations()
        self._runner = runner
        self._given = {name: np.ascontiguousarray(array) for name, array in given.items()}
        self._timesteps = np.asarray(timesteps, dtype=np.float32)
        self._guided, self._cache_interval = guided, cache_interval
        self._deepened = 0  # the call at which the deep layers were computed
        self._deep: list[Array] = []  # and what they made, for each stream
        self._token = object()  # by which stages know whose numbers they hold, without holding the series
        self._apart = guided and "parallel_guidance" not in left  # where the pictures are few and small
        self._halved = guided and "shared_guidance" not in left  # where they are not: the batch's sample is one half
        self._keeps, self._tabled = "kept_inputs" not in left, "time_table" not in left
        self._table: dict[int, Array] = {}  # the first call of a block -> what hangs on its timesteps, a row each
        self._shares: list[StreamSlice] = []  # of each stream
        self._rows = 0  # of the whole batch
        self._worked = False  # has a call come to its end?
        self._order: Array | None = None  # in which their rows are those of the batch; None where they are so already
        self._known: tuple[str, Callable[[], CompiledPartition]] | None = None  # of which stages; the shapes stay

    def __call__(self, call: int, sample: Array, changing: Arrays) -> dict[str, Array]:
        """The network's outputs at this call, counted from 0: its timestep is that of the schedule.

        A network whose parts cannot be made or run stays whole from then on, and the report says so.

        Args:
            call: which.
            sample: [B, ...], whether under guidance or not.
            changing: further inputs that are others at every call, of all rows: [B, ...], or [2B, ...].
        """
        if self._runner.notes and self._cache_interval == 1:
            return self._all_at_once(call, sample, changing)
        try:
            outputs = self._in_parts(call, sample, changing)
        except Exception as failed:
            if self._worked or self._cache_interval > 1 or isinstance(failed, InputError):
                raise
            outputs = self._all_at_once(call, sample, changing)  # where this fails as well, the backend does
            self._runner.notes = (f"openvino runs the {self._runner.name} as one graph: {first_line(failed)}",)
        self._worked = True
        return outputs

    def _all_at_once(self, call: int, sample: Array, changing: Arrays) -> dict[str, Array]:
        """The same by the whole network."""
        rows = np.concatenate([sample, sample]) if self._guided else sample
        timestep = np.full(len(rows), self._timesteps[call])
        return self._runner({"sample": rows, "timestep": timestep, **self._given, **changing})

    def _in_parts(self, call: int, sample: Array, changing: Arrays) -> dict[str, Array]:
        shares = self._shares or self._shared_out(sample)
        varying = {**changing}
        if not self._keeps:
            varying |= self._given
        if not self._tabled:
            varying["timestep"] = np.full(self._rows, self._timesteps[call])
        with self._runner.lock:
            stages = self._stages(sample, varying)
            if stages.owner is not self._token:
                stages.owner = None  # until all is there: who owned it must not go on with half of it
                self._begin(stages)
                stages.owner = self._token
            timed = self._timed(stages, call)
            inputs = []
            for share in shares:
                mine = {name: array[share.rows] for name, array in varying.items()}
                for name, row in timed.items():
                    mine[name] = row if name == TIMES else row[share.rows]
                mine["sample"] = sample[share.samples]
                mine["timestep"] = np.full(share.count, self._timesteps[call])  # taken where no table can hold it
                inputs.append(mine)
            got = self._each(stages, call, inputs)
            stages.forget()
        if self._order is None:
            return got
        return {name: array[self._order] for name, array in got.items()}

    def _shared_out(self, sample: Array) -> list[StreamSlice]:
        """Who does what, decided at the first call: each stream some pictures, or one half of few and small ones."""
        count, places = len(sample), sample[0, 0].size
        few = streams_for(count) < streams_for(2 * count) and self._runner.weights_bytes * count * places <= _SMALL
        if self._apart and few:
            self._halved = False
            parts = np.split(np.arange(2 * count), streams_for(2 * count))
        else:
            split = np.split(np.arange(count), streams_for(count))
            parts = [np.concatenate([some, some + count]) if self._guided else some for some in split]
        order = np.concatenate(parts)
        self._rows = len(order)
        self._order = None if (order[1:] > order[:-1]).all() else np.argsort(order)
        for rows in parts:
            samples = rows[: len(rows) // 2] if self._halved else rows % count
            self._shares.append(StreamSlice(rows=_slice(rows), samples=_slice(samples), count=len(rows)))
        return self._shares

    def _each(self, stages: CompiledPartition, call: int, inputs: list[dict[str, Array]]) -> dict[str, Array]:
        """One call: of the whole part, or of its shallow layers alone where the deep ones' numbers are used again."""
        names = self._runner.output_names
        if self._cache_interval == 1:
            return run(stages.each, inputs, names)
        if not self._deep or call - self._deepened >= self._cache_interval:
            self._deepened = call
            got = run(stages.each, inputs, [*names, DEEP])
            self._deep = np.split(got.pop(DEEP), len(inputs))
            return got
        inputs = [{**mine, DEEP: deep} for mine, deep in zip(inputs, self._deep, strict=True)]
        return run(stages.shallow, inputs, names)

    def _stages(self, sample: Array, varying: Arrays) -> CompiledPartition:
        """The compiled parts for these shapes, which are those of every call."""
        if self._known is None:
            rows = self._shares[0].count
            arrays = {**self._given, **varying, "sample": sample}
            shapes = {name: (rows, *array.shape[1:]) for name, array in arrays.items()} | {"timestep": (rows,)}
            different = sorted(self._different(varying)) if self._halved else None
            key = {
                "part": "each",
                "reuses": self._cache_interval > 1,
                "shapes": shapes,
                "varying": sorted(varying),
                "different": different,
            }
            runner, given, streams = self._runner, tuple(self._given), len(self._shares)
            self._known = f"{streams} {key}", lambda: _made(runner, given, key, streams)
        made = self._runner.kept(*self._known)
        assert isinstance(made, CompiledPartition)
        return made

    def _different(self, varying: Arrays) -> set[str]:
        """The inputs whose halves are not the same."""
        half = len(next(iter(self._given.values()))) // 2
        unlike = {name for name, array in self._given.items() if not np.array_equal(array[:half], array[half:])}
        return unlike | {name for name in varying if name != "timestep"}

    def _begin(self, stages: CompiledPartition) -> None:
        """Compute what stays, and put it where the requests for each call find it."""
        computed = sorted(
            name for names in stages.each[0].takes for name in names if ":" in name
        )  # as `Edge.name`; the network's have none
        given = [{name: array[share.rows] for name, array in self._given.items()} for share in self._shares]
        made = {}
        if computed:
            if not stages.once:
                shapes = {name: array.shape for name, array in given[0].items()}
                key = {"part": "once", "shapes": shapes, "outputs": computed}
                stages.once = self._runner.compiled(key, lambda: stages.parts().once, streams=len(given))
            made = {name: np.split(array, len(given)) for name, array in run(stages.once, given, computed).items()}
        for i, mine in enumerate(given):
            mine |= {name: arrays[i] for name, arrays in made.items()}
            for request in (stages.each[i], *stages.shallow[i : i + 1]):
                for name in request.inputs.keys() & mine.keys():
                    request.inputs[name][...] = mine[name]

    def _timed(self, stages: CompiledPartition, call: int) -> dict[str, Array]:
        """What hangs on this call's timestep, by the input for it.  # TIMES [1, width], OWN_TIMES [rows, width]"""
        if stages.times_of is None:
            return {}
        length = next((n for n in _BLOCKS if n >= len(self._timesteps)), _BLOCKS[-1])
        first = call - call % length
        if first not in self._table:
            timesteps = np.resize(self._timesteps[first : first + length], length)  # what is over repeats, unused
            if stages.times_of == TIMES:  # and nothing else decides them: the next picture's are likely the same
                self._table[first] = stages.tables(timesteps.tobytes(), lambda: self._of_times(stages, timesteps))
            else:
                self._table[first] = self._of_times(stages, timesteps)
        return {stages.times_of: self._table[first][call - first]}

    def _of_times(self, stages: CompiledPartition, timesteps: Array) -> Array:
        """What hangs on the timesteps of some calls.  # [calls, 1, width], or [calls, rows of the batch, width]"""
        length = len(timesteps)
        alike = stages.times_of == TIMES
        # What a timestep's numbers may hang on besides: text and sizes as vectors, never what is as large as a picture.
        beside = {} if alike else {n: a for n, a in self._given.items() if a.ndim == 2}
        count = 1 if alike else self._rows
        inputs = {"timestep": np.repeat(timesteps, count)} | {
            n: np.concatenate([a] * length) for n, a in beside.items()
        }
        rows = length * count
        if rows not in stages.times:
            shapes = {n: array.shape for n, array in inputs.items()}
            # What varies is no part of it, and so decides which of the timesteps' numbers are.
            key = {"part": "times", "shapes": shapes, "varying": stages.varying}
            (stages.times[rows],) = self._runner.compiled(key, lambda: stages.parts().times(rows), precise=True)
        request = stages.times[rows]
        if lacking := [min(names) for names in request.takes if not names & inputs.keys()]:
            raise BackendError(f"the timesteps' part takes {', '.join(lacking)}, which is no timestep or vector")
        got = run([request], [inputs], request.made)
        table: Array = np.concatenate([got[each].reshape(rows, -1) for each in request.made], axis=1)
        return table.reshape(length, count, -1)


def _slice(indices: Array) -> slice | Array:
    """The same, without a copy of what it is taken of, where they follow one another."""
    first, last = int(indices[0]), int(indices[-1])
    return slice(first, last + 1) if np.array_equal(indices, np.arange(first, last + 1)) else indices


def _made(runner: Compiler, given: Sequence[str], key: Mapping[str, Any], streams: int) -> CompiledPartition:
    """Compile what `key` says. Holds nothing of the series that asked."""
    graphs: list[Partition] = []
    cuts: list[Any] = []

    def parts() -> Partition:
        if not graphs:
            shapes = key["shapes"]
            hangs = dict.fromkeys(given, Dependency.GIVEN) | {"timestep": Dependency.TIME}
            hangs |= dict.fromkeys(("sample", *key["varying"]), Dependency.SAMPLE)
            rows = shapes["timestep"][0]
            graphs.append(partition_graph(lambda n: runner.sized(_with_rows(shapes, n)), rows, hangs, key["different"]))
        return graphs[0]

    def cut() -> list[Any]:
        cuts[:] = cuts or split_deep_layers(parts().each)
        return cuts

    def forget() -> None:
        graphs.clear()
        cuts.clear()

    try:
        if not key["reuses"]:
            each, shallow = runner.compiled(key, lambda: parts().each, streams=streams), []
        else:
            each = runner.compiled({**key, "part": DEEP}, lambda: cut()[0], streams=streams)
            shallow = runner.compiled({**key, "part": "shallow"}, lambda: cut()[1], streams=streams)
    except BaseException:
        forget()
        raise
    return CompiledPartition(
        each=each,
        shallow=shallow,
        parts=parts,
        forget=forget,
        varying=key["varying"],
        times_of=next((name for name in (TIMES, OWN_TIMES) if name in each[0].inputs), None),
    )


def _with_rows(shapes: Mapping[str, tuple[int, ...]], rows: int) -> dict[str, tuple[int, ...]]:
    return {name: (rows, *shape[1:]) for name, shape in shapes.items()}
