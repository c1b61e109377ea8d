"""TensorRT's libraries as we find them: whether one can be used here, the module, and its log.

Without a GPU nothing of them is made, as that may end the process.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from ...errors import BackendError, first_line

LIBRARIES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # backend -> its module


def lacking(library: str, extra: str) -> str | None:
    """None where there is a GPU that torch can use and the library is installed, else what is lacking.

    `extra` of ours is what installs it.
    """
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed (pip install 'calotype[build]')"
    import torch

    if not torch.cuda.is_available():
        return "there is no NVIDIA GPU that PyTorch can use"
    if importlib.util.find_spec(library) is None:
        return f"{library} is not installed (pip install 'calotype[{extra}]')"
    return None


def imported(library: str) -> Any:
    """`tensorrt` or `tensorrt_rtx`. Raises `BackendError` where it is installed and broken."""
    try:
        return importlib.import_module(library)
    except ImportError as broken:
        raise BackendError(f"{library} cannot be imported: {first_line(broken)}") from None


def log_of(trt: Any) -> Any:
    """TensorRT's log, of which the last error is kept: its functions answer None or False, and the reason is here."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.told = ""

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.told = first_line(RuntimeError(text))

    return Log()
