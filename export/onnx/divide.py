"""The graph of an autoencoder's network without its 1x1 convolution of the latents.

`load` traces both as one graph. A diffusers pipeline calls them one after the other, so that only the network runs
compiled there: its graph comes from the same trace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from calotype.errors import CheckError
from calotype.plan.plan import Artifact

from ..steps.stored_step import StoredStep
from .file import open_graph, save_graph
from .known_graphs import MODEL

_VERSION = 1


def without_layer(artifact: Artifact, layer: str, label: Mapping[str, str]) -> Artifact:
    """Return an artifact of the store without its first or last layer, a convolution.

    Args:
        artifact: an ONNX file of the store.
        layer: its name in the module.
        label: describes the new file in listings.

    Raises:
        CheckError: the graph does not begin or end with that layer.
    """
    step = StoredStep(
        depends_on={"without": layer, "from": artifact.path.parent.name, "file": artifact.path.name, "as": _VERSION},
        label=label,
    )

    def make(folder: Path) -> Mapping[str, Any]:
        model = open_graph(artifact.path)
        _remove(model.graph, layer)
        save_graph(model, folder / MODEL)
        return {}

    return replace(artifact, path=step.run(make).folder / MODEL)


def _remove(graph: ir.Graph, layer: str) -> None:
    (source,), (target,) = graph.inputs, graph.outputs
    weight = f"module.{layer}.weight"
    convolution = next(
        (n for n in graph if n.op_type == "Conv" and n.inputs[1] is not None and n.inputs[1].name == weight), None
    )
    before = None if convolution is None else convolution.inputs[0]
    if convolution is None or before is None or (before is not source and convolution.outputs[0] is not target):
        raise CheckError(f"the graph neither begins nor ends with the layer {layer}, which is to be left out.")
    if before is source:
        convolution.outputs[0].replace_all_uses_with(source)
    else:
        graph.outputs[0] = before
        name, target.name = target.name, f"{target.name}_before"
        before.name, before.type, before.shape = name, target.type, target.shape
    graph.remove(convolution, safe=True)
