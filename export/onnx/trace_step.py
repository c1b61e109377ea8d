"""Traced and checked float32 ONNX components as entries of the store. Each step runs in a child process."""

from __future__ import annotations

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
from ..steps.subprocess_task import run_in_subprocess
from ..steps.versions import versions
from . import check

TRACER = 5  # increased when tracing produces other graphs


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
        """Return a digest of the component's weights."""
        ...


def trace_step(component: Component, source: WeightsSource) -> StoredStep:
    """Return the step that traces the component."""
    return StoredStep(
        depends_on={
            "component": component.to_json(),
            "weights": source.weights_digest(component.name),
            "tools": versions(),
            "tracer": TRACER,
        },
        label={"component": component.name, "kind": "trace", "precision": "fp32", "model": source.model},
    )


def traced(component: Component, source: WeightsSource, profile: Profile) -> Artifact:
    """Return the component's float32 ONNX. Raises `CheckError` if tracing fails or the graph differs from eager."""

    def make(folder: Path) -> Mapping[str, Any]:
        return _trace_and_check(component, source.weights_folder(component.name), profile, folder)

    stored = trace_step(component, source).run(make)
    return Artifact(form="onnx", path=stored.folder / "model.onnx", precision="fp32", check=stored.notes)


def _trace_and_check(component: Component, weights: Path, profile: Profile, folder: Path) -> Mapping[str, Any]:
    began, reference = time.monotonic(), folder / "reference.npz"
    sizes = [_sizes(profile, 1, 4, 2), _sizes(profile, 3, 3, 5, chunks=2, images=(3, 5))]
    tracing = run_in_subprocess(
        f"tracing the {component.name}",
        "calotype.export.onnx.trace:trace_component",
        component=component.to_json(),
        weights=str(weights),
        sizes=_sizes(profile, 2, 2, 3, images=(2, 4)),
        others=sizes,
        out=str(folder),
    )
    arguments = {
        "component": component.to_json(),
        "path": str(folder / "model.onnx"),
        "reference": str(reference),
        "tolerance": check.TOLERANCE,
    }
    task, function = f"checking the {component.name}", "calotype.export.onnx.check:check_traced"
    checking = run_in_subprocess(task, function, backend="onnxruntime", **arguments)
    if "refused" in checking.value:
        raise CheckError(
            f"cannot use the traced {component.name}: {checking.value['refused']}",
            backend="onnxruntime",
            component=component.name,
            relative_error=checking.value.get("max_relative_error"),
            limit=check.TOLERANCE,
        )
    others = {}
    if unavailable("openvino") is None:
        try:
            others["openvino"] = run_in_subprocess(
                f"{task} on openvino", function, backend="openvino", **arguments
            ).value
        except BuildError as died:  # a backend that crashes is refused, even if requested by name
            others["openvino"] = {"refused": str(died), "crashes": True}
    reference.unlink()
    return {
        **checking.value,
        "tolerance": check.TOLERANCE,
        "others": others,
        "sizes": sizes,
        "seconds": round(time.monotonic() - began, 2),
        "peak_bytes": max(tracing.peak_bytes, checking.peak_bytes),
    }


def _sizes(
    profile: Profile, batch: int, rows: int, columns: int, chunks: int = 1, images: tuple[int, int] = (1, 1)
) -> dict[str, int]:
    """Return small sizes: the graph is the same, and a full-size trace would hold gigabytes of activations."""
    height, width = rows * profile.multiple, columns * profile.multiple
    return profile.sizes(batch=batch, height=height, width=width, chunks=chunks, images=images)
