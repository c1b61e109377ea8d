"""TensorRT's libraries: whether one can run here, its module, and its log.

Without a GPU no object of a library is created, as that may crash the process.
"""

from __future__ import annotations

import importlib
from typing import Any

from ...errors import BackendError, first_line
from ..base import missing_packages

LIBRARIES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # backend -> its module


def unavailable_reason(backend: str) -> str | None:
    """Return None if torch can use a GPU and the library is installed, else what is missing."""
    if reason := missing_packages("build", "torch"):
        return reason
    import torch

    if not torch.cuda.is_available():
        return "there is no NVIDIA GPU that PyTorch can use"
    return missing_packages(backend, LIBRARIES[backend])


def import_library(library: str) -> Any:
    """Import `tensorrt` or `tensorrt_rtx`. Raise `BackendError` if it is installed but broken."""
    try:
        return importlib.import_module(library)
    except ImportError as broken:
        backend = next((name for name, module in LIBRARIES.items() if module == library), None)
        raise BackendError(f"{library} cannot be imported: {first_line(broken)}", backend=backend) from None


def create_log(trt: Any) -> Any:
    """Return a TensorRT log that stores its last error: functions only return None or False, without a reason."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = ""

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.last_error = first_line(RuntimeError(text))

    return Log()
