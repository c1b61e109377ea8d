"""Turn a module in memory into a component: trace it, or build its engine, and keep both in the store by content."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calotype.backends import COMPILED
from calotype.errors.printable import printable
from calotype.plan.family import Component
from calotype.plan.plan import Artifact, PlannedComponent
from calotype.plan.profile import Profile

from ..onnx.trace_step import trace_step, traced
from ..steps.stored_step import StoredStep
from ..tensorrt.engines import default_profile, engines_for


@dataclass(kw_only=True)
class ModuleSource:
    """The weights of a module in memory, as the source of a trace.

    Attributes:
        model: the name that listings of the cache show.
        digest: a digest of the weights' names, types and values.
        write: writes config.json and the weights in safetensors, in float32, into an empty folder.
    """

    model: str
    digest: str
    write: Callable[[Path], None]
    _folder: Path | None = field(default=None, init=False)

    def weights_folder(self, component: str) -> Path:
        """Write the weights at the first use, and return their folder. `close` removes it."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="calotype-"))
            self.write(self._folder)
        return self._folder

    def weights_digest(self, component: str) -> str:
        """Return the digest of the weights."""
        return self.digest

    def close(self) -> None:
        """Remove the folder of the weights."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def prepare_module(
    component: Component, source: ModuleSource, profile: Profile, forms: Collection[str]
) -> PlannedComponent:
    """Return a component with its artifact in the first of the forms, which is traced if the store lacks it.

    Args:
        component: the tensors and the config of the module.
        source: its weights, which are written only if something is traced or built.
        profile: the sizes of the symbols in the tensors.
        forms: "onnx", "diffusers", or backends that compile engines.

    Raises:
        CheckError: the module cannot be traced, or the graph differs from it.
        BuildError: an engine cannot be built, or a step of the work failed.
        SourceError: the weights do not fit the config, or the store cannot be written.
    """
    bare = PlannedComponent(
        name=component.name, inputs=component.inputs, outputs=component.outputs, artifacts=(), refused={}
    )
    compiled = next((form for form in forms if form in COMPILED), None)
    try:
        if compiled is None and "onnx" not in forms:
            kept = keep_weights("float", source.digest, source.model, source.write)
            return bare.with_artifacts(Artifact(form="diffusers", path=kept, precision="fp32", check={}))
        if not trace_step(component, source).is_stored:
            name = component.name
            print(printable(f"calotype: tracing the {name} of {source.model} (once)"), file=sys.stderr)
        graph = traced(component, source, profile)
        if compiled is None:
            return bare.with_artifacts(graph)
        engines = engines_for(compiled, default_profile(profile))
        assert engines is not None  # a form in COMPILED has a builder
        print(f"calotype: building the engine of the {component.name} for {compiled}", file=sys.stderr)
        return bare.with_artifacts(engines.of(bare, graph))
    finally:
        source.close()


def keep_weights(kind: str, digest: str, model: str, write: Callable[[Path], None]) -> Path:
    """Return a folder of the store with a module's weights, which stays as long as this process runs.

    Args:
        kind: the form of the files.
        digest: a digest of the weights.
        model: the name that listings of the cache show.
        write: writes them into an empty folder, if the store lacks them.

    Raises:
        SourceError: the store cannot be written.
    """

    def make(folder: Path) -> Mapping[str, Any]:
        write(folder)
        return {}

    step = StoredStep(depends_on={"weights": digest, "form": kind}, label={"kind": f"{kind} weights", "model": model})
    return step.run(make).folder
