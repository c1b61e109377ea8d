"""An engine in the store gets the weights of another graph of its own structure, or it is said why it cannot.

What a LoRA changes is weights: the engine of the model without it is refitted, and believed where the way there and
back leaves it as it was (`calotype.backends.tensorrt.refit`). How far it is from eager is checked as of any other
engine.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calotype.errors import BackendError, BuildError
from calotype.plan.bindings import Binding, random_inputs
from calotype.plan.plan import Artifact, PlannedComponent


def structure_of(graph: Path) -> str:
    """A digest of all of a graph but the numbers in its weights, and what the exporter says of where it ran."""
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    inside = model.graph
    for told in (model, inside, *inside.node, *inside.value_info, *inside.input, *inside.output):
        told.ClearField("metadata_props")
        told.ClearField("doc_string")
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
    """In a child process: `engine`, which is of `graph`, with the weights of `theirs` into `out`.

    Raises `BuildError` where the library refuses, or A -> B -> A is not exact.
    """
    from calotype.backends import form_of
    from calotype.backends.tensorrt.refit import refitted_engine
    from calotype.backends.tensorrt.runner import open_with_library

    began = time.monotonic()
    inputs, outputs = (tuple(Binding.from_json(b) for b in component[side]) for side in ("inputs", "outputs"))
    artifact = Artifact(form=form_of(backend), path=Path(engine), precision="fp32", check={})
    planned = PlannedComponent(
        name=component["name"], inputs=inputs, outputs=outputs, artifacts=(artifact,), refused={}
    )
    probe = random_inputs(inputs, usual, ids=9)
    try:
        runner = open_with_library(backend.replace("-", "_"), planned, artifact)
        made = refitted_engine(runner, ours=Path(graph), theirs=Path(theirs), probe=probe)
    except BackendError as failed:
        raise BuildError(f"{failed}; it is built anew") from None
    Path(out).write_bytes(made)
    return {"bytes": len(made), "seconds": round(time.monotonic() - began, 1)}
