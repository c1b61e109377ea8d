"""TensorRT engines in the store: read from there, or built in a child process.

An engine depends on the graph, its sizes, the options, the library's version and the GPU. The cache keeps timings of
layers, one entry for a library's version and a GPU, so that a second build measures only new layers.
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

from ..steps.stored_step import StoredStep
from ..steps.subprocess_task import ProgressHandler, report_progress, run_in_subprocess
from ..store.folders import digests_of, files_of_graph
from ..store.store import key_of
from .options import EngineOptions
from .refit import structure_of

Shape = tuple[int, ...]
Ends = tuple[Shape, Shape, Shape]  # min, opt, max

ENGINES = 1  # increment when the same graph becomes a different engine


@dataclass(frozen=True, kw_only=True)
class Engines:
    """Builds the engines of one plan. `tell` receives the progress of a build."""

    backend: str
    profile: Profile
    options: EngineOptions
    tell: ProgressHandler | None = None

    def of(self, component: PlannedComponent, graph: Artifact) -> Artifact:
        """Return the engine of a component's graph, in the graph's precision. Raise `BuildError` if it fails."""
        from .builder import shapes_of

        ends = shapes_of(component.name, component.inputs, self.profile, chunks=self.options.chunks)
        shapes = {name: [list(shape) for shape in shapes] for name, shapes in ends.items()}
        target = {"library": self.backend, "version": installed(self.backend), "gpu": gpu_name()}
        inputs = {"graph": str(graph.path), "shapes": shapes, "options": asdict(self.options)}
        sibling = key_of({**target, **inputs, "graph": structure_of(graph.path)}) if self.options.refit else None

        def make(folder: Path) -> Mapping[str, Any]:
            out = str(folder / "model.engine")
            notes: dict[str, Any] = {}
            if sibling is not None:
                for file in files_of_graph(graph.path):
                    shutil.copy(file, folder)  # the graph has the weights under the names that LoRAs use
                notes = self._refitted(component, graph, sibling, shapes=shapes, out=out)
            if "refitted" in notes:
                return notes
            done = run_in_subprocess(
                f"building the engine of the {component.name}",
                f"{__name__}:build_here",
                self.tell,
                library=LIBRARIES[self.backend],
                **inputs,
                timings=key_of(target),
                out=out,
            )
            return {**notes, **done.notes}

        step = StoredStep(
            depends_on={"engines": ENGINES, **target, **inputs, "graph": digests_of(graph.path)},
            label={"component": component.name, "kind": self.backend, "precision": graph.precision},
        )
        stored = step.run(make)
        path = stored.folder / "model.engine"
        if sibling is not None:
            REFITTABLE.write(sibling, json.dumps({"engine": str(path), "graph": str(graph.path)}).encode())
        check = {**graph.check, "engine": {**stored.notes, "shapes": shapes}}
        return Artifact(form=self.backend, path=path, precision=graph.precision, check=check)

    def _refitted(
        self, component: PlannedComponent, graph: Artifact, sibling: str, *, shapes: Mapping[str, Any], out: str
    ) -> dict[str, Any]:
        """Refit an engine of the same structure with the graph's weights, such as a LoRA's, in seconds.

        Returns:
            Notes with "refitted", or why a build is needed.
        """
        content = REFITTABLE.read(sibling)
        ours = {} if content is None else json.loads(bytes(content))
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
        except BuildError as error:
            return {"built because": str(error)}
        return {**done.notes, "refitted": ours["engine"]}


def engines_for(
    backend: str, profile: Profile, words: Sequence[str] = (), tell: ProgressHandler | None = None
) -> Engines | None:
    """Return the engine builder, or None if the backend opens graphs directly. Raises as `parse_engine_options`."""
    options = parse_engine_options(backend, words)
    return Engines(backend=backend, profile=profile, options=options, tell=tell) if backend in LIBRARIES else None


def default_profile(profile: Profile) -> Profile:
    """Return the default profile of an engine: 1 to 4 images or one clip, 0.5 to 1.5 times the model's own size.

    A wider profile costs speed and memory at every size.
    """

    def about(side: Range) -> Range:
        low, high = (max(1, side.opt * n // 2 // profile.multiple) * profile.multiple for n in (1, 3))
        return Range(min=max(side.min, low), opt=side.opt, max=min(side.max, max(high, side.opt)))

    batch, frames = Range(min=1, opt=1, max=min(4, profile.batch.max)), profile.frames
    if frames is not None:  # one clip of up to the usual length
        batch, frames = Range(min=1, opt=1, max=1), replace(frames, max=frames.opt)
    return replace(profile, batch=batch, frames=frames, height=about(profile.height), width=about(profile.width))


def parse_engine_options(backend: str, words: Sequence[str]) -> EngineOptions:
    """Parse the values of `--engine`.

    Raises:
        InputError: a value is not an option.
        BuildError: the backend does not support the options.
    """
    options = EngineOptions.from_words(words)
    if words and backend not in LIBRARIES:
        raise BuildError(
            f"--engine works only with {' and '.join(LIBRARIES)}, not with {backend}. Leave it out.", backend=backend
        )
    for name, other in (("plugin", "tensorrt-rtx"), ("targets", "tensorrt")):
        if getattr(options, name) and backend == other:
            raise BuildError(f"--engine {name} does not work with {other}. Leave it out.", backend=backend)
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
    """Write the engine to `out`, and the timings to the cache under the key `timings`. Runs in a child process."""
    from calotype.backends.tensorrt.library import import_library

    from .builder import build_engine

    began, cache = time.monotonic(), TIMINGS.read(timings)
    trt, config = import_library(library), EngineOptions(**{**options, "targets": tuple(options["targets"])})
    with tempfile.TemporaryDirectory(prefix="calotype-") as scratch:
        built = build_engine(
            trt,
            _with_plugins(trt, Path(graph), Path(scratch)) if config.plugin else Path(graph),
            profiles_of(shapes, exact=config.exact),
            config,
            timing_cache=b"" if cache is None else bytes(cache),
            watch=lambda phase: report_progress(f"{phase.name}, {phase.done} of {phase.of}"),
        )
    Path(out).write_bytes(built.engine)
    if built.timing_cache:
        TIMINGS.write(timings, built.timing_cache)
    return {"bytes": len(built.engine), "seconds": round(time.monotonic() - began, 1)}


def profiles_of(shapes: Mapping[str, Sequence[Sequence[int]]], *, exact: bool) -> list[dict[str, Ends]]:
    """Return the profiles: the range of sizes, and with `exact` one for only the opt sizes before it.

    A run uses the first profile that contains its sizes.
    """
    ends = {name: (tuple(low), tuple(opt), tuple(high)) for name, (low, opt, high) in shapes.items()}
    optimal = {name: (opt, opt, opt) for name, (_, opt, _) in ends.items()}
    return [optimal, ends] if exact else [ends]


def _with_plugins(trt: Any, graph: Path, scratch: Path) -> Path:
    """Register the plugin with the library, and return a copy of the graph that uses it."""
    import torch

    from .plugin import register, with_plugins

    major, minor = torch.cuda.get_device_capability()
    register(importlib.import_module(f"{trt.__name__}.plugin"), 10 * major + minor)
    with_plugins(graph, scratch / "model.onnx")
    return scratch / "model.onnx"
