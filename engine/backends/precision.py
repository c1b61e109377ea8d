"""Which backends compute a model or a plan in the precision that a caller requests.

It is apart from the precision of files: some backends compute float32 weights in bf16 or fp16 (`Backend.computes`).
The exporter chooses what `auto` takes, because it compares outputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import BackendError, BuildError
from ..plan.command import rebuild_command
from ..plan.plan import Artifact, Plan, PlannedComponent
from ..weights.precisions import Precisions
from .base import Backend
from .registry import BackendSelection, backend_of


def unable(backend: Backend, precision: str) -> str | None:
    """Return why the backend cannot compute a model's own weights in a precision on this machine, or None."""
    if precision not in backend.computes:
        known = ", ".join(backend.computes)
        return f"{backend.name} computes a model's own weights in {known}, not in {precision}"
    return backend.unsupported(precision)


def selection_for(choice: BackendSelection, precisions: Precisions) -> BackendSelection:
    """Return the backends of a choice that compute a model in all requested precisions.

    Raises:
        BackendError: there are none; with the reasons, and with what to request.
    """
    requested = precisions.requested
    reasons = {name: _reason(backend_of(name), requested) for name in choice.names}
    names = tuple(name for name in choice.names if reasons[name] is None)
    if names:
        return replace(choice, names=names, skipped={**choice.skipped, **{n: r for n, r in reasons.items() if r}})
    backends = [backend_of(name) for name in choice.names]
    able = dict.fromkeys(p for each in backends for p in each.computes if unable(each, p) is None)
    why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    only = choice.names[0] if len(choice.requested) == 1 else None
    message = (
        f"cannot compute in {', '.join(sorted(requested))} here. {why}. "
        f"Use precision='auto' (--precision auto), or one of {', '.join(able)}."
    )
    raise BackendError(message, backend=only)


def _reason(backend: Backend, requested: Iterable[str]) -> str | None:
    """Return why the backend cannot run in one of the precisions. An int8 network needs a build, which decides."""
    for precision in sorted(requested):
        if precision == "int8":
            if "int8" not in backend.precisions:
                return f"{backend.name} has no int8"
        elif reason := unable(backend, precision):
            return reason
    return None


def in_precision(component: PlannedComponent, precision: str, choice: BackendSelection) -> tuple[Artifact, ...]:
    """Return the artifacts that backends of the choice run in a precision, by the order of the backends."""
    artifacts: dict[Any, Artifact] = {}
    for backend in map(backend_of, choice.names):
        for each in component.artifacts:
            if each.form != backend.form:
                continue
            computed = None
            if each.precision.partition("+")[0] == precision and each.precision in backend.precisions:
                computed = each
            elif precision in backend.computes and holds_float32(each):
                computed = computed_in(each, precision)
            if computed is not None:
                artifacts.setdefault((computed.path, computed.precision), computed)
    return tuple(artifacts.values())


def computed_in(artifact: Artifact, precision: str) -> Artifact:
    """Return an artifact that computes in another precision. Of its check, only the backends that refuse it count."""
    kept = {name: value for name, value in artifact.check.items() if name == "others"}
    return replace(artifact, precision=precision, check=kept)


def holds_float32(artifact: Artifact) -> bool:
    """Return whether a file has the model's own weights: OpenVINO computes those of float32 in bf16."""
    return artifact.form == "diffusers" or (artifact.form == "onnx" and artifact.precision in ("fp32", "bf16"))


def plan_in(plan: Plan, precisions: Precisions, choice: BackendSelection, folder: Path) -> Plan:
    """Return a plan whose components run in these precisions. "auto" is what the plan was built in.

    Raises:
        InputError: a component does not exist.
        BackendError: this machine cannot compute in a precision.
        BuildError: the plan lacks a precision, and it cannot be computed; with the command that builds it.
    """
    precisions.check_components(plan.components)
    requested = {name: precisions.of(name) for name in plan.components if precisions.of(name) != "auto"}
    components = dict(plan.components)
    for name, precision in requested.items():
        component = components[name]
        artifacts = in_precision(component, precision, choice)
        if not artifacts and precision == "int8" and name not in precisions.components and _has(plan, "int8"):
            continue  # a build in int8 may leave a component in float32
        if not artifacts:
            built = ", ".join(dict.fromkeys(each.precision for each in component.artifacts))
            spec = {**plan.build.get("spec", {}), "precision": precision}
            command = rebuild_command({**plan.build, "spec": spec}, f"{folder}-{precision}")
            message = f"the plan {folder} has the {name} in {built}, and {precision} was requested. Build it: {command}"
            raise BuildError(message, backend=plan.backend, component=name, hint=command)
        forms = {artifact.form for artifact in artifacts}
        reasons = {b.name: b.unsupported(precision) for b in _running(choice, precision) if b.form in forms}
        if None not in reasons.values():
            why = "; ".join(f"{each}: {reason}" for each, reason in reasons.items())
            raise BackendError(
                f"cannot compute the {name} in {precision} here. {why}. Use precision='auto'.", component=name
            )
        components[name] = component.with_artifacts(*artifacts)
    return replace(plan, components=components)


def _running(choice: BackendSelection, precision: str) -> list[Backend]:
    return [each for each in map(backend_of, choice.names) if precision in each.precisions]


def _has(plan: Plan, precision: str) -> bool:
    return any(a.precision.startswith(precision) for c in plan.components.values() for a in c.artifacts)
