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
from typing import Any

from calotype.backends import ON_GPU, BackendSelection
from calotype.backends.base import Backend
from calotype.backends.compatibility import installed
from calotype.backends.precision import in_precision
from calotype.backends.registry import backend_of
from calotype.errors import BackendError, BuildError, CalotypeError, first_line
from calotype.files.cache import PRECISIONS
from calotype.plan.plan import PlannedComponent
from calotype.weights.precisions import Precisions

from ..store.store import key_of
from .built import built_artifact
from .precision_trial import Model, errors_of

CHECK = 1  # increment when the check changes
LIMIT = 3e-2  # of the relative L2 difference from float32
_INEXACT = "fp32"


class PrecisionChoice:
    """Chooses the precision of each component of one model. The caller holds a lock."""

    def __init__(self, precisions: Precisions, choice: BackendSelection, model: Model) -> None:
        self._precisions, self._choice, self._model = precisions, choice, model

    def of(self, component: PlannedComponent) -> PlannedComponent:
        """Return a component whose first artifact has the chosen precision.

        Raises:
            BuildError: its int8 is not in the cache.
        """
        precision = self._precisions.of(component.name)
        if precision == "auto":
            return self._auto(component)
        if precision == "int8":
            return self._built(component)
        return component.with_artifacts(*in_precision(component, precision, self._choice))

    def unchecked(self, names: Iterable[str]) -> list[str]:
        """Return the components for which "auto" has a precision to check first."""
        backend = backend_of(self._choice.names[0])
        native = [p for p in _lower(backend) if backend.unsupported(p) is None][:1]
        automatic = [name for name in names if self._precisions.of(name) == "auto"]
        return [n for n in automatic for p in native if PRECISIONS.read(self._key(n, p, backend)) is None]

    def _built(self, component: PlannedComponent) -> PlannedComponent:
        for name in self._choice.names:
            artifact = built_artifact(self._model.family.components[component.name], self._model.source, name)
            if artifact is None:
                continue
            if artifact.precision.startswith("int8"):
                return component.with_artifacts(artifact)
            if component.name not in self._precisions.components:  # a build may leave a component in float32
                kept = in_precision(component, _INEXACT, self._choice)
                return component.with_artifacts(*(_because(each, "the int8 build left it in fp32") for each in kept))
        command = self._command("int8")
        raise BuildError(
            f"the cache has no {component.name} of {self._model.source.model} in int8 for "
            f"{' or '.join(self._choice.names)}. Build it: {command}",
            hint=command,
        )

    def _command(self, precision: str) -> str:
        backend = next((n for n in self._choice.names if "int8" in backend_of(n).precisions), self._choice.names[0])
        words = ["calotype", "build", self._model.source.model, "--backend", backend, "--precision", precision]
        return shlex.join([*words, "-o", "PLAN"])

    def _auto(self, component: PlannedComponent) -> PlannedComponent:
        backend = backend_of(self._choice.names[0])
        own = next((a for a in component.artifacts if a.form == backend.form), None)
        if own is None or own.precision != "fp32":
            return component
        reasons = []
        for precision in _lower(backend):
            if (reason := backend.unsupported(precision)) is not None:
                reasons.append(f"{precision}: {reason}")
                continue
            verdict = self._verdict(component.name, precision, backend)
            if verdict["passed"]:
                chosen = replace(own, precision=precision, check={})
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
        line = f"calotype: comparing {precision} with float32 on real inputs of {self._model.source.model} (once)"
        try:
            with self._model.progress.stage("check precision", line):
                errors = self._errors(name, precision, backend)
        except CalotypeError as failed:
            return {"passed": False, "why": f"the check against float32 failed: {first_line(failed)}"}
        for each, error in errors.items():
            passed = error <= LIMIT
            against = f"relative error {error:.1e} against float32 on real inputs"
            verdict = {"passed": passed, "why": f"{against}, limit {LIMIT:.0e}", "error": str(error)}
            PRECISIONS.write(self._key(each, precision, backend), json.dumps(verdict).encode())
            if each == name:
                answer = verdict
        return answer

    def _errors(self, name: str, precision: str, backend: Backend) -> Mapping[str, float]:
        first = replace(self._choice, names=(backend.name,), requested=(backend.name,), explicit=True)
        try:
            return errors_of(self._model, name, precision, first, first)
        except BackendError:  # float32 takes twice the memory, which a GPU may lack: compare with PyTorch on the CPU
            if backend.name not in ON_GPU:
                raise
            eager = replace(first, names=("eager",), requested=("eager",))
            return errors_of(self._model, name, precision, first, eager)

    def _key(self, name: str, precision: str, backend: Backend) -> str:
        return key_of(
            {
                "check": [CHECK, LIMIT],
                "component": self._model.family.components[name].to_json(),
                "weights": self._model.source.weights_digest(name),
                "precision": precision,
                "backend": [backend.name, installed(backend.name), backend.hardware()],
            }
        )


def _lower(backend: Backend) -> tuple[str, ...]:
    """Return the precisions below float32 that a backend computes, the fastest first."""
    return backend.computes[: backend.computes.index("fp32")]


def _because(artifact: Any, reason: str) -> Any:
    """Return an artifact with the reason of its precision, for reports."""
    return replace(artifact, check={**artifact.check, "precision_reason": reason}) if reason else artifact
