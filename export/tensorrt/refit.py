"""Refit an engine in the store with the weights of another graph of the same structure.

A LoRA changes only weights, so the engine of the model without it can be refitted. The refit is accepted if refitting
there and back restores the engine exactly (`calotype.backends.tensorrt.refit`). Its error against eager is checked
like that of any other engine.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calotype.backends.tensorrt.refit import refitted_engine
from calotype.backends.tensorrt.runner import open_with_library
from calotype.errors import BackendError, BuildError
from calotype.plan.bindings import Binding, random_inputs
from calotype.plan.plan import Artifact, PlannedComponent


def structure_of(graph: Path) -> str:
    """Return a digest of a graph without the numbers in its weights and without the exporter's metadata."""
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    inside = model.graph
    for proto in (model, inside, *inside.node, *inside.value_info, *inside.input, *inside.output):
        proto.ClearField("metadata_props")
        proto.ClearField("doc_string")
    for tensor in model.graph.initializer:
        shape, kind, name = list(tensor.dims), tensor.data_type, tensor.name
        tensor.Clear()
        tensor.dims.extend(shape)
        tensor.data_type, tensor.name = kind, name
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def refit_here(
    *,
    backend: str,
    component: Mapping[str, Any],
    engine: str,
    graph: str,
    theirs: str,
    usual: Mapping[str, Sequence[int]],
    out: str,
) -> dict[str, Any]:
    """Write the engine of `graph`, with the weights of `theirs`, to `out`. Runs in a child process.

    Raises:
        BuildError: the library refuses, or refitting A -> B -> A is not exact.
    """
    from calotype.backends import form_of

    began = time.monotonic()
    inputs, outputs = (tuple(Binding.from_json(b) for b in component[side]) for side in ("inputs", "outputs"))
    artifact = Artifact(form=form_of(backend), path=Path(engine), precision="fp32", check={})
    planned = PlannedComponent(
        name=component["name"], inputs=inputs, outputs=outputs, artifacts=(artifact,), refused={}
    )
    probe = random_inputs(inputs, usual, ids=9)
    try:
        runner = open_with_library(backend.replace("-", "_"), planned, artifact)
        content = refitted_engine(runner, ours=Path(graph), theirs=Path(theirs), probe=probe)
    except BackendError as error:
        message = f"{error}; the engine is built again"
        raise BuildError(message, backend=backend, component=component["name"]) from None
    Path(out).write_bytes(content)
    return {"bytes": len(content), "seconds": round(time.monotonic() - began, 1)}
