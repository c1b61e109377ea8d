"""The record of networks in a lower precision that a build has left in the cache, for a later `load`."""

from __future__ import annotations

import json

from calotype.files.cache import BUILT
from calotype.plan.family import Component
from calotype.plan.plan import Artifact, PlannedComponent

from ..onnx.trace_step import WeightsSource, trace_step
from ..store.store import STORE, intact, key_of


def keep_built(component: Component, source: WeightsSource, backend: str, planned: PlannedComponent) -> None:
    """Remember which entry of the store a build chose for a component. Engines and other files are left out."""
    chosen = planned.artifacts[0]
    if chosen.form != "onnx" or chosen.path.parent.parent != STORE.root:
        return
    record = {"precision": chosen.precision, "entry": chosen.path.parent.name, "file": chosen.path.name}
    BUILT.write(_key(component, source, backend), json.dumps({**record, "check": dict(chosen.check)}).encode())


def built_artifact(component: Component, source: WeightsSource, backend: str) -> Artifact | None:
    """Return what the last build in int8 chose for a component on a backend; None if the cache has it no more."""
    kept = BUILT.read(_key(component, source, backend))
    if kept is None:
        return None
    try:
        record = json.loads(bytes(kept))
        stored = intact(record["entry"])
        if stored is None:
            return None
        check = {**record["check"], "precision_reason": "from a build in the cache"}
        return Artifact(form="onnx", path=stored.folder / record["file"], precision=record["precision"], check=check)
    except (LookupError, TypeError, ValueError):
        return None


def _key(component: Component, source: WeightsSource, backend: str) -> str:
    return key_of({"int8": dict(trace_step(component, source).depends_on), "backend": backend})
