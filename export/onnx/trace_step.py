"""Traced and checked float32 ONNX components as entries of the store. Each step runs in a child process."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from calotype.backends import unavailable
from calotype.errors import BuildError, CheckError
from calotype.plan.family import Component
from calotype.plan.plan import Artifact
from calotype.plan.profile import Profile

from ..steps.stored_step import StoredStep
from ..steps.subprocess_task import Outcome, run_in_subprocess
from ..steps.versions import OPSET, versions
from . import check
from .known_graphs import MODEL, known_graph
from .trace_key import trace_key

REFERENCE, TEMPLATE = "reference.npz", "template"  # what a trace leaves next to its graph
TRACER = 7  # increased when tracing produces other graphs


class WeightsSource(Protocol):
    """What a trace takes from a model: a `Source`, or a module in memory."""

    @property
    def model(self) -> str:
        """The name of the model, for listings."""
        ...

    def weights_folder(self, component: str) -> Path:
        """Return the folder of the component's config and weights."""
        ...

    def weights_digest(self, component: str) -> str:
        """Return a digest of the values of the component's weights."""
        ...


def trace_step(component: Component, source: WeightsSource) -> StoredStep:
    """Return the step that traces the component."""
    return StoredStep(
        depends_on={
            "component": trace_key(component),
            "weights": source.weights_digest(component.name),
            "tools": versions(),
            "tracer": TRACER,
        },
        label={"component": component.name, "kind": "trace", "precision": "fp32", "model": source.model},
    )


def trace_guess_s(weights_count: int) -> float:
    """Return a guess of the seconds that a trace takes, from the number of weights."""
    return 14 + 100 * weights_count / 1e9


def traced(component: Component, source: WeightsSource, profile: Profile) -> Artifact:
    """Return the component's float32 ONNX. Raises `CheckError` if tracing fails or the graph differs from eager."""

    def make(folder: Path) -> Mapping[str, Any]:
        return _trace_and_check(component, source, profile, folder)

    stored = trace_step(component, source).run(make)
    return Artifact(form="onnx", path=stored.folder / MODEL, precision="fp32", check=stored.notes)


def known_key(component: Component) -> dict[str, Any]:
    """Return what a graph that comes with Calotype depends on: not on versions of tools, as it is checked."""
    return {"graph": trace_key(component), "opset": OPSET, "tracer": TRACER}


def template_step(component: Component, model: str) -> StoredStep:
    """Return the step of a graph without weights: it depends on the component's config, and not on its weights."""
    return StoredStep(
        depends_on={"template": trace_key(component), "tools": versions(), "tracer": TRACER},
        label={"component": component.name, "kind": "graph", "model": model},
    )


def _trace_and_check(component: Component, source: WeightsSource, profile: Profile, folder: Path) -> Mapping[str, Any]:
    began = time.monotonic()
    # Small sizes: the graph is the same, and a full-size trace would hold gigabytes of activations. With one row or
    # column at the deepest level, group norms of tiny networks divide by almost nothing.
    traced_at = _sizes(profile, 2, 2, 3, images=(2, 4), frames=5)
    sizes = [_sizes(profile, 1, 3, 2), _sizes(profile, 3, 2, 2, chunks=2, images=(3, 5), frames=4)]
    template = template_step(component, source.model)
    stored = template.stored()

    def trace(template: Path | None) -> Outcome:
        return run_in_subprocess(
            f"tracing the {component.name}",
            "calotype.export.onnx.trace:trace_component",
            component=component.to_json(),
            weights=str(source.weights_folder(component.name)),
            sizes=traced_at,
            others=sizes,
            template=None if template is None else str(template),
            out=str(folder),
        )

    if stored is None:
        with known_graph(known_key(component)) as known:
            tracing = trace(known)
    else:
        tracing = trace(stored.folder)
        template.release()
    checking = _check(component, "onnxruntime", folder)
    if "refused" in checking.value and tracing.value:  # the template depends on the weights of its own network
        tracing = trace(None)
        checking = _check(component, "onnxruntime", folder)
    if "refused" in checking.value:
        raise CheckError(
            f"cannot use the traced {component.name}: {checking.value['refused']}",
            backend="onnxruntime",
            component=component.name,
            relative_error=checking.value.get("max_relative_error"),
            limit=check.TOLERANCE,
        )
    if (graph := folder / TEMPLATE).exists():
        template.run(lambda out: _move_files(graph, out))
        template.release()
        shutil.rmtree(graph)
    others = {}
    if unavailable("openvino") is None:
        try:
            others["openvino"] = _check(component, "openvino", folder).value
        except BuildError as died:  # a backend that crashes is refused, even if requested by name
            others["openvino"] = {"refused": str(died), "crashes": True}
    (folder / REFERENCE).unlink()
    return {
        **checking.value,
        "tolerance": check.TOLERANCE,
        "others": others,
        "sizes": sizes,
        "seconds": round(time.monotonic() - began, 2),
        "peak_bytes": max(tracing.peak_bytes, checking.peak_bytes),
    }


def _check(component: Component, backend: str, folder: Path) -> Outcome:
    return run_in_subprocess(
        f"checking the {component.name} on {backend}",
        "calotype.export.onnx.check:check_traced",
        component=component.to_json(),
        path=str(folder / MODEL),
        reference=str(folder / REFERENCE),
        tolerance=check.TOLERANCE,
        backend=backend,
    )


def _move_files(folder: Path, out: Path) -> Mapping[str, Any]:
    for path in folder.iterdir():
        shutil.move(path, out / path.name)
    return {}


def _sizes(profile: Profile, batch: int, rows: int, columns: int, **more: Any) -> dict[str, int]:
    height, width = rows * profile.multiple, columns * profile.multiple
    return profile.sizes(batch=batch, height=height, width=width, **more)
