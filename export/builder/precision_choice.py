"""The precision of each component of a model that is loaded without a plan.

"auto" takes the first precision that the hardware computes natively, in the order of `Backend.computes`, and whose
outputs on real inputs are close to float32. The result is kept for these weights, this hardware and this version of the
backend. "int8" opens what a build has left in the cache. All others are computed from the model's own weights.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from calotype.backends import ON_GPU, BackendSelection
from calotype.backends.base import Backend
from calotype.backends.compatibility import installed
from calotype.backends.precision import computed_in, in_precision
from calotype.backends.registry import backend_of
from calotype.errors import BackendError, BuildError, first_line
from calotype.files.cache import PRECISIONS
from calotype.plan.family import Component
from calotype.plan.plan import Artifact, PlannedComponent
from calotype.weights.precisions import VARIABLE, Precisions, precision_of_auto

from ..onnx.trace_key import trace_key
from ..onnx.trace_step import WeightsSource
from ..steps.progress import OpeningProgress
from ..store.store import key_of
from .built import built_artifact

CHECK = 1  # increment when the check changes
LIMIT = 3e-2  # of the relative L2 difference from float32


class Model(Protocol):
    """What has components whose precision is chosen: a model's files, or a module in memory."""

    @property
    def described(self) -> Mapping[str, Component]:
        """The components by name."""
        ...

    @property
    def source(self) -> WeightsSource:
        """The weights."""
        ...

    @property
    def progress(self) -> OpeningProgress:
        """What shows the stages."""
        ...

    def float32(self, name: str) -> PlannedComponent:
        """Return a component with its float32 artifacts, traced if necessary."""
        ...

    def errors(
        self, name: str, precision: str, choice: BackendSelection, reference: BackendSelection
    ) -> Mapping[str, float]:
        """Return the largest relative L2 difference from float32 of a component, and of others that were recorded.

        Args:
            name: the component.
            precision: the lower precision.
            choice: the backend that computes in it.
            reference: the backend that computes in float32.

        Raises:
            CalotypeError: the model cannot run in float32, or the component cannot run in the precision.
        """
        ...


class PrecisionChoice:
    """Chooses the precision of each component of one model. The caller holds a lock."""

    def __init__(self, precisions: Precisions, choice: BackendSelection, model: Model) -> None:
        self._precisions, self._choice, self._model = precisions, choice, model
        self._failed: dict[str, Mapping[str, Any]] = {}  # precision -> its verdict, if the check itself failed

    def of(self, name: str) -> PlannedComponent:
        """Return a component whose first artifact has the chosen precision. It is traced if that needs a trace.

        Raises:
            BuildError: its int8 is not in the cache.
        """
        precision = self._precisions.of(name)
        if precision == "int8":
            artifact = self._built(name)
            if artifact.precision.startswith("int8"):
                described = self._model.described[name]
                bare = PlannedComponent(
                    name=name, inputs=described.inputs, outputs=described.outputs, artifacts=(), refused={}
                )
                return bare.with_artifacts(artifact)
            component = self._model.float32(name)
            kept = in_precision(component, "fp32", self._choice)
            return component.with_artifacts(*(_because(each, "the int8 build left it in fp32") for each in kept))
        component = self._model.float32(name)
        if precision == "auto":
            return self._auto(component)
        return component.with_artifacts(*in_precision(component, precision, self._choice))

    def check_built(self) -> None:
        """Raise `BuildError` if int8 is requested, and the cache lacks it."""
        for name in self._model.described:
            if self._precisions.of(name) == "int8":
                self._built(name)

    def unchecked(self, names: Iterable[str]) -> list[str]:
        """Return the components for which "auto" has a precision to check first."""
        backend = backend_of(self._choice.names[0])
        native = [p for p in _lower(backend) if _excluded(backend, p) is None][:1]
        automatic = [name for name in names if self._precisions.of(name) == "auto"]
        return [n for n in automatic for p in native if PRECISIONS.read(self._key(n, p, backend)) is None]

    def _built(self, name: str) -> Artifact:
        """Return what a build in int8 chose. It may leave a component in float32, unless that one is requested."""
        model = self._model.source.model
        for backend in self._choice.names:
            artifact = built_artifact(self._model.described[name], self._model.source, backend)
            if artifact is not None and (
                artifact.precision.startswith("int8") or name not in self._precisions.components
            ):
                refused = {"refused": f"its int8 was built for {backend}", "crashes": True}
                others = {other: refused for other in self._choice.names if other != backend}
                return replace(artifact, check={**artifact.check, "others": others})
        command = shlex.join(
            ["calotype", "build", model, "--backend", self._choice.names[0], "--precision", "int8", "-o", "PLAN"]
        )
        raise BuildError(
            f"the cache has no {name} of {model} in int8 for {' or '.join(self._choice.names)}. Build it: {command}",
            component=name,
            hint=command,
        )

    def _auto(self, component: PlannedComponent) -> PlannedComponent:
        backend = backend_of(self._choice.names[0])
        own = next((a for a in component.artifacts if a.form == backend.form), None)
        if own is None or own.precision != "fp32" or own.check.get("others", {}).get(backend.name, {}).get("refused"):
            return component
        reasons = []
        for precision in _lower(backend):
            if (reason := _excluded(backend, precision)) is not None:
                reasons.append(f"{precision}: {reason}")
                continue
            verdict = self._verdict(component.name, precision, backend)
            if verdict["passed"]:
                chosen = computed_in(own, precision)
                return component.with_artifacts(
                    _because(chosen, f"{precision}: {verdict['why']}"), *component.artifacts
                )
            reasons.append(f"{precision}: {verdict['why']}")
        others = [each for each in component.artifacts if each is not own]
        return component.with_artifacts(_because(own, "; ".join(f"not {r}" for r in reasons)), *others)

    def _verdict(self, name: str, precision: str, backend: Backend) -> Mapping[str, Any]:
        """Return whether a precision passes and why, from the cache or from a check now."""
        kept = PRECISIONS.read(self._key(name, precision, backend))
        if kept is not None:
            verdict: Mapping[str, Any] = json.loads(bytes(kept))
            return verdict
        if precision in self._failed:
            return self._failed[precision]
        line = f"calotype: comparing {precision} with float32 on real inputs of {self._model.source.model} (once)"
        try:
            with self._model.progress.stage("check precision", line):
                errors = self._errors(name, precision, backend)
        except Exception as failed:  # also of a library: float32 may run where the check does not
            why = f"the check against float32 failed: {first_line(failed)}"
            self._failed[precision] = {"passed": False, "why": why}
            return self._failed[precision]
        verdicts: dict[str, Mapping[str, Any]] = {}
        for each, error in errors.items():
            why = f"relative error {error:.1e} against float32 on real inputs, limit {LIMIT:.0e}"
            verdicts[each] = {"passed": error <= LIMIT, "why": why}
            PRECISIONS.write(self._key(each, precision, backend), json.dumps(verdicts[each]).encode())
        return verdicts.get(name) or {"passed": False, "why": "the check did not call it"}

    def _errors(self, name: str, precision: str, backend: Backend) -> Mapping[str, float]:
        first = replace(self._choice, names=(backend.name,), requested=(backend.name,), explicit=True)
        try:
            return self._model.errors(name, precision, first, first)
        except BackendError:  # float32 takes twice the memory, which a GPU may lack: compare with PyTorch on the CPU
            if backend.name not in ON_GPU:
                raise
            eager = replace(first, names=("eager",), requested=("eager",))
            return self._model.errors(name, precision, first, eager)

    def _key(self, name: str, precision: str, backend: Backend) -> str:
        return key_of(
            {
                "check": [CHECK, LIMIT],
                "component": trace_key(self._model.described[name]),
                "weights": self._model.source.weights_digest(name),
                "precision": precision,
                "backend": [backend.name, installed(backend.name), backend.hardware()],
            }
        )


def _lower(backend: Backend) -> tuple[str, ...]:
    """Return the precisions below float32 that a backend computes, the fastest first."""
    return backend.computes[: backend.computes.index("fp32")]


def _excluded(backend: Backend, precision: str) -> str | None:
    """Return why "auto" does not try a precision, or None if it does."""
    only = precision_of_auto()
    return f"{VARIABLE} is {only}" if only not in ("auto", precision) else backend.unsupported(precision)


def _because(artifact: Any, reason: str) -> Any:
    """Return an artifact with the reason of its precision, for reports."""
    return replace(artifact, check={**artifact.check, "precision_reason": reason}) if reason else artifact
