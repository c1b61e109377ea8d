"""What the networks are given in real runs, and what float32 eager answers: for calibration, checks and the gate.

A picture is made by the ordinary pipeline on the eager backend, one component in memory at a time: what comes before
it is replayed from its own recording, and the run stops where the next one would be called, keeping what it would have
been given. Recordings are folders of .npz files; knows nothing of precision.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calotype.backends import choose
from calotype.backends.torch.eager import open_runner
from calotype.pipeline import Pipeline
from calotype.plan.plan import Plan, PlannedComponent, read_plan

Arrays = dict[str, NDArray[Any]]
KEPT_CALLS = 256  # of a network in a recording, evenly over all pictures and steps


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a network: [B, ...] by name. `outputs` is empty where the run stopped before the answer."""

    inputs: Arrays
    outputs: Arrays


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Which pictures to make: one a prompt, with the seed of its place."""

    prompts: tuple[str, ...]
    steps: int
    height: int
    width: int
    first_seed: int = 0
    controls: int = 0  # ControlNets, each of which is given an outline
    masked: bool = False  # an inpainting model is given a picture and a mask too

    def arguments(self, i: int) -> dict[str, Any]:
        """Of the pipeline's call for picture i."""
        sizes = {"height": self.height, "width": self.width}
        outlines = {"control_image": [self._outline(i, c) for c in range(self.controls)]} if self.controls else {}
        masked = dict(zip(("image", "mask_image"), self._masked(i), strict=True)) if self.masked else {}
        told = {"prompt": self.prompts[i], "seed": self.first_seed + i, "steps": self.steps}
        return {**told, **sizes, **outlines, **masked}

    def _masked(self, i: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Boxes of flat colors, and a box to be painted over.  # uint8 [H, W, 3], bool [H, W]"""
        rng = np.random.default_rng([self.first_seed + i, 2**16])
        drawn = np.full((self.height, self.width, 3), rng.integers(0, 256, 3), dtype=np.uint8)
        for _ in range(4):
            drawn[self._box(rng)] = rng.integers(0, 256, 3)
        mask = np.zeros((self.height, self.width), dtype=np.bool_)
        mask[self._box(rng)] = True
        return drawn, mask

    def _box(self, rng: np.random.Generator) -> tuple[slice, slice]:
        """A quarter to three quarters of the picture each way."""
        sides = [(side, int(rng.integers(side // 4, 3 * side // 4))) for side in (self.height, self.width)]
        starts = [int(rng.integers(0, side - length + 1)) for side, length in sides]
        rows, columns = (slice(a, a + length) for a, (_, length) in zip(starts, sides, strict=True))
        return rows, columns

    def _outline(self, i: int, control: int) -> NDArray[np.uint8]:
        """White lines on black, as an edge detector draws them.  # uint8 [H, W, 3]"""
        rng = np.random.default_rng([self.first_seed + i, control])
        drawn = np.zeros((self.height, self.width, 3), dtype=np.uint8)
        for _ in range(6):
            top, bottom = sorted(rng.integers(0, self.height, 2))
            left, right = sorted(rng.integers(0, self.width, 2))
            drawn[[top, bottom], left : right + 1] = drawn[top : bottom + 1, [left, right]] = 255
        return drawn


def write_calls(path: Path, calls: Sequence[Call]) -> None:
    """Calls into one .npz file."""
    sides = [(i, side, arrays) for i, c in enumerate(calls) for side, arrays in (("in", c.inputs), ("out", c.outputs))]
    np.savez(path, **{f"{i}.{side}.{name}": a for i, side, arrays in sides for name, a in arrays.items()})  # type: ignore[arg-type]


def read_calls(path: Path) -> list[Call]:
    """The calls that `write_calls` wrote."""
    found: dict[int, dict[str, Arrays]] = {}
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            i, side, name = key.split(".", 2)
            found.setdefault(int(i), {"in": {}, "out": {}})[side][name] = file[key]
    return [Call(inputs=found[i]["in"], outputs=found[i]["out"]) for i in sorted(found)]


def groups(names: Sequence[str], *, masked: bool) -> list[tuple[str, ...]]:
    """Components in the order of a run; those that take turns at every step are recorded together.

    Where pictures come in, the autoencoder's encoder is before the steps; else it is after, on what was decoded.
    """
    turns = tuple(n for n in names if n.startswith(("controlnet", "unet")))
    text = [(n,) for n in names if n.startswith("text_encoder")]
    decoder, encoder = ([(n,)] if n in names else [] for n in ("vae_decoder", "vae_encoder"))
    return [*text, *encoder, turns, *decoder] if masked else [*text, turns, *decoder, *encoder]


class _Enough(Exception):
    """The run has come to a component that is recorded later."""


class _Tape:
    """Stands in for an opened component: replays what was recorded, records what is asked for, stops at the rest."""

    def __init__(self, component: PlannedComponent, known: Sequence[Call], wanted: bool) -> None:
        self._component, self._wanted = component, wanted
        self._known = {_digest(c.inputs): c.outputs for c in known if c.outputs}
        self._runner: Any = None
        self.calls: list[Call] = []

    def __call__(self, **inputs: NDArray[Any]) -> Arrays:
        digest = _digest(inputs)
        if digest in self._known:
            return self._known[digest]
        given = {name: np.array(array) for name, array in inputs.items()}
        if not self._wanted:
            self.calls.append(Call(inputs=given, outputs={}))
            raise _Enough
        if self._runner is None:
            artifact = self._component.artifact("diffusers")
            assert artifact is not None  # the plan of a source has the reference of every component
            self._runner = open_runner(self._component, artifact)
        outputs = self._runner(given)
        self.calls.append(Call(inputs=given, outputs=outputs))
        return dict(outputs)

    def tried(self, run: Any, inputs: Callable[[], Arrays]) -> Arrays:
        """As `LoadedComponent.tried`: a series of calls is recorded by what each of them is given."""
        return self(**inputs())


def _digest(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    whole = hashlib.sha256()
    for name in sorted(arrays):
        whole.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return whole.digest()


class _Recorder(Pipeline):
    """A pipeline whose components are tapes."""

    def __init__(self, plan: Plan, tapes: Mapping[str, _Tape]) -> None:
        self._tapes = tapes
        super().__init__(plan, choose("eager"))

    def component(self, name: str) -> Any:
        return self._tapes[name]


def record(
    *, plan: str, names: Sequence[str], earlier: Mapping[str, str], pictures: Mapping[str, Any], out: str
) -> None:
    """Record the components `names` over the pictures; what they lead to is in `NEXT.pending.npz`.

    In a child process: `plan` is a folder, `earlier` the .npz file of each component recorded before, `out` a folder.
    """
    asked = Pictures(**{**pictures, "prompts": tuple(pictures["prompts"])})
    opened, folder = read_plan(Path(plan), sealed=False), Path(out)
    if names == ["vae_decoder"] or (names == ["vae_encoder"] and not asked.masked):
        calls = _record_one(opened.components[names[0]], Path(earlier[names[0]]))
        write_calls(folder / f"{names[0]}.npz", calls)
        return
    tapes = {
        name: _Tape(component, read_calls(Path(earlier[name])) if name in earlier else (), name in names)
        for name, component in opened.components.items()
    }
    pipe = _Recorder(opened, tapes)
    for i in range(len(asked.prompts)):
        for _ in _until_enough(pipe, asked.arguments(i)):
            pass
    for name, tape in tapes.items():
        if name in names:
            write_calls(folder / f"{name}.npz", evenly(tape.calls, KEPT_CALLS))
        elif tape.calls and name == "vae_decoder":
            write_calls(folder / f"{name}.pending.npz", tape.calls)


def _until_enough(pipe: Pipeline, arguments: Mapping[str, Any]) -> Iterator[None]:
    try:
        for _ in pipe.stream(**arguments):
            yield
    except Exception as stopped:  # the pipeline words errors of its backends anew
        if not isinstance(stopped, _Enough) and not isinstance(stopped.__cause__, _Enough):
            raise


def _record_one(component: PlannedComponent, pending: Path) -> list[Call]:
    """The decoder on the latents that the runs ended with; the encoder on the pixels that the decoder made of them."""
    artifact = component.artifact("diffusers")
    assert artifact is not None
    runner = open_runner(component, artifact)
    calls = []
    for call in read_calls(pending):
        given = call.inputs if component.name == "vae_decoder" else {"sample": call.outputs["sample"].clip(-1, 1)}
        calls.append(Call(inputs=given, outputs=runner(given)))
    return calls


def evenly(calls: Sequence[Call], most: int) -> list[Call]:
    """At most so many of the calls, spread over all of them."""
    if len(calls) <= most:
        return list(calls)
    return [calls[i * len(calls) // most] for i in range(most)]
