"""Compare artifacts with recorded outputs of the eager float32 module before they are used.

The reference comes from `trace` (at sizes that were not traced) or from `capture` (real runs). This module does not
import torch, so the eager module and the artifact are never in memory together.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calotype.backends import choose, open_component
from calotype.errors import BackendError, CalotypeError, CheckError
from calotype.files.cache import only_reading
from calotype.plan.family import Component
from calotype.plan.plan import Artifact, PlannedComponent, read_plan

from .capture import Call, evenly, read_calls

TOLERANCE = 1e-4  # relative to the largest value of each output, for artifacts that compute in float32
KEPT_CALLS = 8  # of a recording; each is a full run of the network


def relative_error(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return max|got - expected| / max|expected|; infinite if a value is not finite."""
    difference = float(np.abs(got.astype(np.float64) - expected).max())
    scale = float(np.abs(expected).max())
    return difference / max(scale, 1e-12) if np.isfinite(difference) else float("inf")


def relative_l2(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return ||got - expected|| / ||expected|| (L2 norms); infinite if a value is not finite."""
    difference = float(np.linalg.norm((got.astype(np.float64) - expected).ravel()))
    length = float(np.linalg.norm(expected.astype(np.float64).ravel()))
    return difference / max(length, 1e-12) if np.isfinite(difference) else float("inf")


def check_traced(
    *, component: Mapping[str, Any], path: str, reference: str, tolerance: float, backend: str
) -> dict[str, Any]:
    """Compare a traced graph on a backend with eager, in a child process.

    Return the errors, and "refused" with the reason if the backend must not use the graph.
    """
    c = Component.from_json(component)
    artifact = Artifact(form="onnx", path=Path(path), precision="fp32", check={})
    planned = PlannedComponent(name=c.name, inputs=c.inputs, outputs=c.outputs, artifacts=(artifact,), refused={})
    try:
        calls = read_calls(Path(reference))
        if backend == "openvino":  # which compiles for each size, at some seconds each: onnxruntime has checked both
            calls = calls[-1:]
        with only_reading():
            figures: dict[str, Any] = compare(planned, backend, calls)
    except CalotypeError as failed:
        return {"refused": str(failed)}
    error = figures["max_relative_error"]
    if error > tolerance:
        limit = f"{error:.1e} of its largest value (expected at most {tolerance:.0e})"
        figures["refused"] = f"it differs from eager float32 by {limit}"
    return figures


def check_planned(*, plan: str, name: str, backend: str, reference: str) -> dict[str, float]:
    """Compare a component of a plan on `backend` with a recording of real runs, in a child process."""
    component = read_plan(Path(plan), sealed=False).components[name]
    return compare(component, backend, evenly(read_calls(Path(reference)), KEPT_CALLS))


def compare(component: PlannedComponent, backend: str, calls: list[Call]) -> dict[str, float]:
    """Return the largest errors of the component on this backend over the calls."""
    try:
        opened = open_component(component, choose(backend))
    except BackendError as failed:
        raise CheckError(
            f"cannot open the {component.name}: {failed}", backend=backend, component=component.name
        ) from None
    max_error = max_l2 = 0.0
    for call in calls:
        got = opened(**call.inputs)
        for name, expected in call.outputs.items():
            max_error = max(max_error, relative_error(got[name], expected))
            max_l2 = max(max_l2, relative_l2(got[name], expected))
    return {"max_relative_error": max_error, "relative_l2": max_l2, "calls": len(calls)}
