"""The onnxruntime backend: runs ONNX artifacts with ONNX Runtime's CPU provider, in the artifact's precision."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import BackendError
from ...system.memory import frees_after_run
from ..base import Array, Arrays, Backend, missing_packages
from .runner import OrtRunner, import_onnxruntime

if TYPE_CHECKING:
    from ...plan.plan import Artifact, PlannedComponent

_SHRINK = ("memory.enable_memory_arena_shrinkage", "cpu:0")


class OnnxRuntimeRunner(OrtRunner):
    """A session on the CPU. Several threads may run it."""

    backend = "onnxruntime"

    def __init__(self, component: PlannedComponent, artifact: Artifact) -> None:
        self._last: tuple[dict[str, tuple[int, ...]], bool] = {}, False  # the last shapes; does the next run shrink?
        super().__init__(component, artifact, import_onnxruntime(), "CPUExecutionProvider", {})

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        """Return all outputs by name."""
        if self._session is None:
            message = "its session could not be opened again with changed weights"
            raise BackendError(message, backend=self.backend, component=self._name)
        outputs = self._session.run(self._outputs, dict(inputs), self._shrinking(inputs))
        self._last = self._last[0], frees_after_run(self._name, (*inputs.values(), *outputs))
        return dict(zip(self._outputs, outputs, strict=True))

    def _shrinking(self, inputs: Arrays) -> Any | None:
        """Return options for a run that frees the arena at its end, or None for a run that keeps it.

        ONNX Runtime's arena does not shrink by itself: it would keep the memory of the largest size of all calls. So a
        run frees it if the sizes changed, and after every run of an autoencoder on large images.
        """
        (shapes, frees), now = self._last, {name: array.shape for name, array in inputs.items()}
        self._last = now, frees
        if now == shapes and not frees:
            return None
        options = self._ort.RunOptions()
        options.add_run_config_entry(*_SHRINK)
        return options


BACKEND = Backend(
    name="onnxruntime",
    form="onnx",
    precisions=("fp32", "fp16", "int8"),
    packages=("onnxruntime", "onnxruntime-gpu"),
    unavailable=partial(missing_packages, "cpu", "onnxruntime"),
    open=OnnxRuntimeRunner,
)
