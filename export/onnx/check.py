"""Is an artifact the network it was made from? Held against recorded answers of the eager float32 module before use.

The reference comes from `trace` (sizes it was not traced at) or from `record` (what real runs give it). Imports no
torch: the module and the artifact need not be in memory together.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calotype.backends import choose, open_component
from calotype.errors import BackendError, CalotypeError, CheckError
from calotype.plan.family import Component
from calotype.plan.plan import Artifact, PlannedComponent, read_plan

from .capture import Call, evenly, read_calls

TOLERANCE = 1e-4  # of the largest value of each output, where the artifact computes in float32
KEPT_CALLS = 8  # of a recording are enough: each is a whole run of the network


def relative_error(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Largest difference over largest magnitude of the reference; infinite where a number is not finite."""
    difference = float(np.abs(got.astype(np.float64) - wanted).max())
    scale = float(np.abs(wanted).max())
    return difference / max(scale, 1e-12) if np.isfinite(difference) else float("inf")


def relative_l2(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Length of the difference over length of the reference; infinite where a number is not finite."""
    difference = float(np.linalg.norm((got.astype(np.float64) - wanted).ravel()))
    length = float(np.linalg.norm(wanted.astype(np.float64).ravel()))
    return difference / max(length, 1e-12) if np.isfinite(difference) else float("inf")


def check_traced(*, component: Mapping[str, Any], path: str, reference: str, tolerance: float) -> dict[str, Any]:
    """In a child process: ONNX Runtime against eager; `CheckError` past the tolerance."""
    described = Component.from_json(component)
    planned = _planned(described, path)
    figures = compare(planned, "onnxruntime", read_calls(Path(reference)))
    if figures["max_relative_error"] > tolerance:
        raise CheckError(
            f"the traced {described.name} differs from eager float32 by {figures['max_relative_error']:.1e} of its "
            f"largest value (allowed: {tolerance:.0e}), so it is not used"
        )
    return {**figures, "tolerance": tolerance}


def check_other(
    *, component: Mapping[str, Any], path: str, reference: str, tolerance: float, backend: str
) -> dict[str, Any]:
    """In a child process: what `auto` would take first. The same figures, or why the backend is `refused`."""
    try:
        figures: dict[str, Any] = compare(
            _planned(Component.from_json(component), path), backend, read_calls(Path(reference))
        )
    except CalotypeError as failed:
        return {"refused": str(failed)}
    error = figures["max_relative_error"]
    if error > tolerance:
        figures["refused"] = f"it differs from eager float32 by {error:.1e} (allowed: {tolerance:.0e})"
    return figures


def _planned(component: Component, path: str) -> PlannedComponent:
    artifact = Artifact(form="onnx", path=Path(path), precision="fp32", check={})
    return PlannedComponent(
        name=component.name, inputs=component.inputs, outputs=component.outputs, artifacts=(artifact,), refused={}
    )


def check_planned(*, plan: str, name: str, backend: str, reference: str) -> dict[str, float]:
    """In a child process: a component of a plan on its backend, over what real runs gave it. The figures alone."""
    component = read_plan(Path(plan), sealed=False).components[name]
    return compare(component, backend, evenly(read_calls(Path(reference)), KEPT_CALLS))


def compare(component: PlannedComponent, backend: str, calls: list[Call]) -> dict[str, float]:
    """The worst figures of the component on this backend over the calls."""
    try:
        opened = open_component(component, choose(backend))
    except BackendError as failed:
        raise CheckError(f"the {component.name} cannot be opened: {failed}") from None
    largest = far = 0.0
    for call in calls:
        got = opened(**call.inputs)
        for name, wanted in call.outputs.items():
            largest = max(largest, relative_error(got[name], wanted))
            far = max(far, relative_l2(got[name], wanted))
    return {"max_relative_error": largest, "relative_l2": far, "calls": len(calls)}
