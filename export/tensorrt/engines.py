"""TensorRT's engines of graphs, in the store: found there, or built in a child process for the GPU that is here.

An engine depends on the graph, its sizes, the options, the library's version and the GPU. Timings of layers are kept
in the cache, one entry for a library's version and a GPU, so that a second build measures what is new alone.
"""

from __future__ import annotations

import importlib
import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from calotype.backends.compatibility import installed
from calotype.backends.tensorrt.library import LIBRARIES
from calotype.errors import BuildError
from calotype.files.cache import REFITTABLE, TIMINGS
from calotype.plan.plan import Artifact, PlannedComponent
from calotype.plan.profile import Profile, Range
from calotype.system.nvidia import gpu_name

from ..steps.subprocess_task import ProgressHandler, report_progress, run_in_subprocess
from ..store.folders import digests_of, files_of_graph
from ..store.store import fetch, key_of
from .options import EngineOptions
from .refit import structure_of

Shape = tuple[int, ...]
Ends = tuple[Shape, Shape, Shape]  # least, usual, most

ENGINES = 1  # raised when the same graph would become another engine


@dataclass(frozen=True, kw_only=True)
class Engines:
    """How the engines of one plan are built. `tell` hears how far a build has come."""

    backend: str
    profile: Profile
    options: EngineOptions
    tell: ProgressHandler | None = None

    def of(self, component: PlannedComponent, graph: Artifact) -> Artifact:
        """The engine of a component's graph, in the graph's precision. Raises `BuildError`."""
        shapes = self._shapes(component)
        about = {"library": self.backend, "version": installed(self.backend), "gpu": gpu_name()}
        told = {"graph": str(graph.path), "shapes": shapes, "options": asdict(self.options)}
        key = key_of({"engines": ENGINES, **about, **told, "graph": digests_of(graph.path)})

        def make(folder: Path) -> Mapping[str, Any]:
            out = str(folder / "model.engine")
            for file in files_of_graph(graph.path) if self.options.refit else ():
                shutil.copy(file, folder)  # it has the weights by the names that LoRAs know
            notes = self._refitted(component, graph, sibling, shapes, out)
            if "refitted" in notes:
                return notes
            done = run_in_subprocess(
                f"building the engine of the {component.name}",
                "calotype.export.tensorrt.engines:build_here",
                self.tell,
                library=LIBRARIES[self.backend],
                **told,
                timings=key_of(about),
                out=out,
            )
            return {**notes, **done.value, "peak_bytes": done.peak_bytes}

        label = {"component": component.name, "kind": self.backend, "precision": graph.precision}
        sibling = key_of({**about, **told, "graph": structure_of(graph.path)}) if self.options.refit else None
        folder, notes = fetch(key, make, label=label)
        if sibling is not None:
            made = {"engine": str(folder / "model.engine"), "graph": str(graph.path)}
            REFITTABLE.write(sibling, json.dumps(made).encode())
        check = {**graph.check, "engine": {**notes, "shapes": shapes}}
        return Artifact(form=self.backend, path=folder / "model.engine", precision=graph.precision, check=check)

    def _refitted(
        self, component: PlannedComponent, graph: Artifact, sibling: str | None, shapes: Mapping[str, Any], out: str
    ) -> dict[str, Any]:
        """Other weights for an engine of the same structure, in seconds: a LoRA's. Else why it has to be built."""
        kept = None if sibling is None else REFITTABLE.read(sibling)
        ours = {} if kept is None else json.loads(bytes(kept))
        if not ours or not all(Path(path).is_file() for path in ours.values()):
            return {}
        sides = {"inputs": component.inputs, "outputs": component.outputs}
        try:
            done = run_in_subprocess(
                f"refitting the engine of the {component.name}",
                "calotype.export.tensorrt.refit:refit_here",
                backend=self.backend,
                component={"name": component.name, **{n: [b.to_json() for b in v] for n, v in sides.items()}},
                **ours,
                theirs=str(graph.path),
                usual={name: ends[1] for name, ends in shapes.items()},
                out=out,
            )
        except BuildError as failed:
            return {"built because": str(failed)}
        return {**done.value, "refitted": ours["engine"], "peak_bytes": done.peak_bytes}

    def _shapes(self, component: PlannedComponent) -> dict[str, list[list[int]]]:
        from .builder import shapes_of

        ends = shapes_of(component.name, component.inputs, self.profile, chunks=self.options.chunks)
        return {name: [list(end) for end in found] for name, found in ends.items()}


def engines_for(
    backend: str, profile: Profile, words: Sequence[str] = (), tell: ProgressHandler | None = None
) -> Engines | None:
    """None for a backend that opens graphs as they are. Raises as `check_words`."""
    options = check_words(backend, words)
    return Engines(backend=backend, profile=profile, options=options, tell=tell) if backend in LIBRARIES else None


def modest(profile: Profile) -> Profile:
    """What an engine is built for where nobody said: every size more costs it speed and memory at all of them.

    One to four pictures, half to one and a half of the model's own size.
    """

    def about(side: Range) -> Range:
        low, high = (max(1, side.opt * n // 2 // profile.multiple) * profile.multiple for n in (1, 3))
        return Range(min=max(side.min, low), opt=side.opt, max=min(side.max, max(high, side.opt)))

    batch = Range(min=1, opt=1, max=min(4, profile.batch.max))
    return replace(profile, batch=batch, height=about(profile.height), width=about(profile.width))


def check_words(backend: str, words: Sequence[str]) -> EngineOptions:
    """What they say. `InputError` for words that say no option, `BuildError` for a backend that has none of these."""
    options = EngineOptions.from_words(words)
    if words and backend not in LIBRARIES:
        raise BuildError(f"--engine is for {' and '.join(LIBRARIES)}, and this build is for {backend}.")
    for name, other in (("plugin", "tensorrt-rtx"), ("targets", "tensorrt")):
        if getattr(options, name) and backend == other:
            raise BuildError(f"--engine {name} is not for {other}; leave it out.")
    return options


def build_here(
    *,
    library: str,
    graph: str,
    shapes: Mapping[str, Sequence[Sequence[int]]],
    options: Mapping[str, Any],
    timings: str,
    out: str,
) -> dict[str, Any]:
    """In a child process: the engine into `out`, and what was timed on the way into the cache, by the key `timings`."""
    from calotype.backends.tensorrt.library import import_library

    from .builder import build_engine

    began, cache = time.monotonic(), TIMINGS.read(timings)
    trt, said = import_library(library), EngineOptions(**{**options, "targets": tuple(options["targets"])})
    with tempfile.TemporaryDirectory(prefix="calotype-") as scratch:
        built = build_engine(
            trt,
            _with_plugins(trt, Path(graph), Path(scratch)) if said.plugin else Path(graph),
            profiles_of(shapes, exact=said.exact),
            said,
            timing_cache=b"" if cache is None else bytes(cache),
            watch=lambda phase: report_progress(f"{phase.name}, {phase.done} of {phase.of}"),
        )
    Path(out).write_bytes(built.engine)
    if built.timing_cache:
        TIMINGS.write(timings, built.timing_cache)
    return {"bytes": len(built.engine), "seconds": round(time.monotonic() - began, 1)}


def profiles_of(shapes: Mapping[str, Sequence[Sequence[int]]], *, exact: bool) -> list[dict[str, Ends]]:
    """The range of every input's sizes; before it, where wanted, the usual ones alone. The first that fits is run."""
    least, usual, most = ({n: tuple(ends[i]) for n, ends in shapes.items()} for i in range(3))
    ends = [(usual, usual, usual), (least, usual, most)]
    return [{n: (a[n], b[n], c[n]) for n in shapes} for a, b, c in ends[0 if exact else 1 :]]


def _with_plugins(trt: Any, graph: Path, scratch: Path) -> Path:
    """The graph with our kernels in it, which the library then knows."""
    import torch

    from .plugin import register, with_plugins

    major, minor = torch.cuda.get_device_capability()
    register(importlib.import_module(f"{trt.__name__}.plugin"), 10 * major + minor)
    with_plugins(graph, scratch / "model.onnx")
    return scratch / "model.onnx"
