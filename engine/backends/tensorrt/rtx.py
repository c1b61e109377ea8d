"""The tensorrt-rtx backend: engines of TensorRT-RTX, which speaks TensorRT's API. The runner is that backend's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import BackendError
from .library import lacking
from .runner import PRECISIONS, TensorRtRunner, opened_with

if TYPE_CHECKING:
    from ...plan.plan import Artifact, PlannedComponent

__all__ = ["FORM", "PRECISIONS", "open_runner", "unavailable"]

FORM = "tensorrt-rtx"


def unavailable() -> str | None:
    """None where there is a GPU that torch can use and TensorRT-RTX is installed, else what is lacking."""
    return lacking("tensorrt_rtx", "tensorrt-rtx")


def open_runner(component: PlannedComponent, artifact: Artifact) -> TensorRtRunner:
    """Open an engine. Raises `BackendError` where it cannot run here; one for other GPUs does not open."""
    reason = unavailable()
    if reason is not None:
        raise BackendError(f"{reason}.")
    return opened_with("tensorrt_rtx", component, artifact)
