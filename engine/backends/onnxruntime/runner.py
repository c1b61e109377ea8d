"""An ONNX Runtime session that is opened again when its weights change. `cpu` and `cuda` run it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ...errors import BackendError, first_line
from ...system import threads
from ...weights.delta import NO_DELTAS, WeightDeltas
from ...weights.onnx import OnnxWeights
from ..base import Runner

if TYPE_CHECKING:
    from ...plan.plan import Artifact, PlannedComponent


class OrtRunner(Runner):
    """A session on an ONNX file. `ort` is the module onnxruntime."""

    def __init__(
        self, component: PlannedComponent, artifact: Artifact, ort: Any, provider: str, settings: Mapping[str, str]
    ) -> None:
        self.precision, self._path, self._name = artifact.precision, artifact.path, component.name
        self._outputs = [b.name for b in component.outputs]
        self._ort, self._provider, self._settings = ort, provider, settings
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
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads.available()  # its default ignores container quotas
        changed = list(self._weights.changed(deltas)) if deltas else []
        if changed:  # the values share numpy's memory until the session has copied them
            values = [self._ort.OrtValue.ortvalue_from_numpy(value) for _, value in changed]
            options.add_external_initializers([name for name, _ in changed], values)
        try:
            session = self._ort.InferenceSession(
                str(self._path), options, providers=[(self._provider, dict(self._settings))]
            )
        except Exception as failed:  # onnxruntime's errors have no common base class below Exception
            message = f"ONNX Runtime cannot open {self._path}: {first_line(failed)}"
            raise BackendError(message, backend=self.backend, component=self._name) from None
        got = session.get_providers()
        if got[:1] != [self._provider]:  # it only logs that it falls back
            message = f"ONNX Runtime cannot use {self._provider}: it selected {', '.join(got)}"
            raise BackendError(message, backend=self.backend, component=self._name)
        return session


def import_onnxruntime() -> Any:
    """Import the library. Raise `BackendError` if it is installed but broken."""
    try:
        import onnxruntime
    except ImportError as failed:
        raise BackendError(f"onnxruntime cannot be imported: {first_line(failed)}", backend="onnxruntime") from None
    return onnxruntime
