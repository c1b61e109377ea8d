"""Turn a module in memory into a component: trace it, or build its engine, and keep both in the store by content."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calotype.backends import COMPILED, BackendSelection, open_component
from calotype.backends.base import Arrays
from calotype.errors.printable import printable
from calotype.plan.family import Component
from calotype.plan.plan import Artifact, PlannedComponent
from calotype.plan.profile import Profile
from calotype.weights.precisions import Precisions

from ..onnx.trace_step import trace_step, traced
from ..steps.progress import OpeningProgress
from ..steps.stored_step import StoredStep
from ..tensorrt.engines import default_profile, engines_for
from .precision_choice import PrecisionChoice


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


@dataclass(kw_only=True)
class _OneModule:
    """A module in memory as a model of one component. Its precision is checked on the inputs of one call."""

    component: Component
    source: ModuleSource
    profile: Profile
    forms: Collection[str]
    inputs: Arrays
    without: str | None
    progress: OpeningProgress = field(default_factory=OpeningProgress)

    @property
    def described(self) -> Mapping[str, Component]:
        """The component by its name."""
        return {self.component.name: self.component}

    def float32(self, name: str) -> PlannedComponent:
        """Return the component with its artifact, traced if the store lacks it."""
        return _float32(self.component, self.source, self.profile, self.forms, self.without)

    def errors(
        self, name: str, precision: str, choice: BackendSelection, reference: BackendSelection
    ) -> Mapping[str, float]:
        """Return the error of the component in a precision, on the inputs of the call."""
        from ..onnx.capture import Call  # libraries that a module without a check does not need
        from .precision_trial import error_of

        planned = self.float32(name)
        outputs = open_component(planned, reference)(**self.inputs)
        return {name: error_of(planned, precision, choice, [Call(inputs=dict(self.inputs), outputs=outputs)])}


def prepare_module(
    component: Component,
    source: ModuleSource,
    profile: Profile,
    choice: BackendSelection,
    *,
    precision: str,
    inputs: Arrays,
    without: str | None = None,
) -> PlannedComponent:
    """Return a component with its artifact, which is traced if the store lacks it.

    Args:
        component: the tensors and the config of the module.
        source: its weights, which are written only if something is traced or built.
        profile: the sizes of the symbols in the tensors.
        choice: the backends. The first one says the form of the artifact.
        precision: one of `calotype.weights.precisions.PRECISIONS`.
        inputs: those of a call, on which "auto" compares a lower precision with float32.
        without: the first or last layer of the component, which the caller runs itself, so that it is left out.

    Raises:
        CheckError: the module cannot be traced, or the graph differs from it.
        BuildError: an engine cannot be built, a step of the work failed, or the cache has no int8.
        SourceError: the weights do not fit the config, or the store cannot be written.
    """
    model = _OneModule(
        component=component, source=source, profile=profile, forms=choice.forms, inputs=inputs, without=without
    )
    try:
        planned = PrecisionChoice(Precisions(default=precision), choice, model).of(component.name)
        if without is None or precision != "int8":
            return planned
        built = [a if a.precision == "fp32" else _divided(a, without, component, source) for a in planned.artifacts]
        return planned.with_artifacts(*built)
    finally:
        source.close()


def _float32(
    component: Component, source: ModuleSource, profile: Profile, forms: Collection[str], without: str | None
) -> PlannedComponent:
    bare = PlannedComponent(
        name=component.name, inputs=component.inputs, outputs=component.outputs, artifacts=(), refused={}
    )
    compiled = next((form for form in forms if form in COMPILED), None)
    if compiled is None and "onnx" not in forms:
        kept = keep_weights("float", source.digest, source.model, source.write)
        return bare.with_artifacts(Artifact(form="diffusers", path=kept, precision="fp32", check={}))
    if not trace_step(component, source).is_stored:
        name = component.name
        print(printable(f"calotype: tracing the {name} of {source.model} (once)"), file=sys.stderr)
    graph = traced(component, source, profile)
    if without is not None:
        graph = _divided(graph, without, component, source)
    if compiled is None:
        return bare.with_artifacts(graph)
    engines = engines_for(compiled, default_profile(profile))
    assert engines is not None  # a form in COMPILED has a builder
    print(f"calotype: building the engine of the {component.name} for {compiled}", file=sys.stderr)
    return bare.with_artifacts(engines.of(bare, graph))


def _divided(graph: Artifact, without: str, component: Component, source: ModuleSource) -> Artifact:
    from ..onnx.divide import without_layer  # with the exporter's libraries

    label = {"component": component.name, "kind": f"without {without}", "precision": graph.precision}
    return without_layer(graph, without, {**label, "model": source.model})


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
