"""The tensorrt-rtx backend: runs engines of TensorRT-RTX, which has TensorRT's API, with the same runner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import BackendError
from .library import unavailable_reason
from .runner import PRECISIONS, TensorRtRunner, open_with_library

if TYPE_CHECKING:
    from ...plan.plan import Artifact, PlannedComponent

__all__ = ["FORM", "PRECISIONS", "open_runner", "unavailable"]

FORM = "tensorrt-rtx"


def unavailable() -> str | None:
    """Return None if torch can use a GPU and TensorRT-RTX is installed, else what is missing."""
    return unavailable_reason("tensorrt_rtx", "tensorrt-rtx")


def open_runner(component: PlannedComponent, artifact: Artifact) -> TensorRtRunner:
    """Open an engine. Raise `BackendError` if it cannot run here, for example an engine for other GPUs."""
    reason = unavailable()
    if reason is not None:
        raise BackendError(f"{reason}.")
    return open_with_library("tensorrt_rtx", component, artifact)
