"""The onnxruntime backend: runs ONNX artifacts with ONNX Runtime's CPU provider, in the artifact's precision."""

from __future__ import annotations

import importlib.util
from contextlib import nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ...errors import BackendError, first_line
from ...system import threads
from ...system.memory import frees_after_run
from ...weights.delta import NO_DELTAS
from .weights import OnnxWeights

if TYPE_CHECKING:
    import numpy as np

    from ...plan.plan import Artifact, PlannedComponent
    from ...weights.delta import WeightDeltas
    from ..base import Arrays

FORM = "onnx"
PRECISIONS = ("fp32", "fp16", "int8")
_PROVIDERS = ["CPUExecutionProvider"]
_SHRINK = ("memory.enable_memory_arena_shrinkage", "cpu:0")


def unavailable() -> str | None:
    """Return None if onnxruntime is installed, else the command that installs it."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed (pip install 'calotype[cpu]')"
    return None


class OnnxRuntimeRunner:
    """An ONNX Runtime session. Several threads may run it."""

    backend = "onnxruntime"

    def __init__(self, component: PlannedComponent, artifact: Artifact) -> None:
        self.precision = artifact.precision
        self._path = artifact.path
        self._names = [b.name for b in component.outputs]
        self._name = component.name
        self._last: tuple[dict[str, tuple[int, ...]], bool] = {}, False  # the last shapes; does the next run shrink?
        self._session: Any = self._open(NO_DELTAS)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return each layer's weight shape."""
        return self._weights.shapes()

    def update_weights(self, deltas: WeightDeltas) -> None:
        """Open a new session with these weights changed. Close the old one first: two never share the memory."""
        self._weights.check(deltas)
        self._session = None
        self._session = self._open(deltas)

    @cached_property
    def _weights(self) -> OnnxWeights:
        return OnnxWeights(self._path)

    def _open(self, deltas: WeightDeltas) -> Any:
        try:
            import onnxruntime as ort
        except ImportError as failed:  # installed, but broken
            raise BackendError(f"onnxruntime cannot be imported: {first_line(failed)}") from None
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads.available()  # its default ignores container quotas
        options.log_severity_level = 3
        weights = self._weights.override_initializers(ort, options, deltas) if deltas else nullcontext()
        try:
            with weights:
                session = ort.InferenceSession(str(self._path), options, providers=_PROVIDERS)
        except Exception as failed:  # onnxruntime's errors have no common base class below Exception
            raise BackendError(f"ONNX Runtime cannot open {self._path}: {first_line(failed)}") from None
        got = session.get_providers()
        if got[: len(_PROVIDERS)] != _PROVIDERS:  # it only logs that it falls back
            raise BackendError(f"ONNX Runtime cannot use {_PROVIDERS}: it selected {got}")
        return session

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Return all outputs by name."""
        if self._session is None:
            raise BackendError("its session could not be opened again with changed weights")
        outputs = self._session.run(self._names, dict(inputs), self._shrinking(inputs))
        self._last = self._last[0], frees_after_run(self._name, (*inputs.values(), *outputs))
        return dict(zip(self._names, outputs, strict=True))

    def _shrinking(self, inputs: Arrays) -> Any | None:
        """Return options for a run that frees the arena at its end, or None for a run that keeps it.

        ONNX Runtime's arena does not shrink by itself: it would keep the memory of the largest size of all calls. So a
        run frees it if the sizes changed, and after every run of an autoencoder on large images.
        """
        (shapes, frees), now = self._last, {name: array.shape for name, array in inputs.items()}
        self._last = now, frees
        if now == shapes and not frees:
            return None
        import onnxruntime as ort

        options = ort.RunOptions()
        options.add_run_config_entry(*_SHRINK)
        return options


def open_runner(component: PlannedComponent, artifact: Artifact) -> OnnxRuntimeRunner:
    """Open a session on an ONNX file."""
    return OnnxRuntimeRunner(component, artifact)
