"""Read and write ONNX files whose weights are external data.

Weights are memory-mapped and written one tensor at a time, so models may be larger than memory and than protobuf's
limit of 2 GB. This module does not know what is done to a graph.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common as passes

from calotype.errors import SourceError, first_line

# Tensors up to this size stay inside the graph's file. Shapes, axes and resize scales must: ONNX Runtime's shape
# inference does not read them from external data.
INLINE_BYTES = 256
WEIGHTED = ("Conv", "Gemm", "MatMul")
SCOPES = "pkg.torch.onnx.name_scopes"  # note of a node: the modules that it comes from, as the repr of a list
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def open_graph(source: Path) -> ir.Model:
    """Open a graph with types for every tensor, and with Constant nodes lifted to initializers.

    Raises `SourceError` for an unreadable file, and for graphs with subgraphs or functions: `trace` writes none.
    """
    try:
        model = ir.load(source)
    except Exception as broken:  # protobuf raises its own kinds
        raise SourceError(f"{source} cannot be read as ONNX: {first_line(broken)}", path=source) from None
    inner = [n for n in model.graph if any(a.type in _GRAPHS for a in n.attributes.values())]
    if inner or model.functions:
        what = f"node {inner[0].name} ({inner[0].op_type}) holds a subgraph" if inner else "it has functions"
        raise SourceError(
            f"cannot use {source}: {what}. Export it without control flow and with inlined functions.", path=source
        )
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    untyped = [v for n in model.graph for v in n.outputs if v.name and v.type is None]
    if untyped:
        for value in model.graph.initializers.values():  # inference reads shapes, but not from external data
            if isinstance(value.const_value, ir.ExternalTensor) and value.const_value.nbytes <= INLINE_BYTES:
                value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
        passes.ShapeInferencePass()(model)
    for value in untyped:
        if value.type is None:
            raise SourceError(f"cannot use {source}: the type of {value.name} is unknown.", path=source)
    return model


def label(node: ir.Node) -> str:
    """Return a node's name, or its operator and first output if it has no name."""
    return node.name or f"{node.op_type}:{node.outputs[0].name}"


def tensors(model: ir.Model) -> list[ir.Value]:
    """Return every named tensor of the graph: inputs, initializers, and outputs of nodes."""
    computed = (v for n in model.graph for v in n.outputs if v.name)
    return list(dict.fromkeys([*model.graph.inputs, *model.graph.initializers.values(), *computed]))


def save_graph(model: ir.Model, out: Path) -> None:
    """Write `out`, and `out`.data with every tensor larger than `INLINE_BYTES`."""
    out.parent.mkdir(parents=True, exist_ok=True)
    passes.RemoveUnusedNodesPass()(model)  # and unused initializers
    ir.save(model, out, external_data=f"{out.name}.data", size_threshold_bytes=INLINE_BYTES)


def bytes_of(path: Path) -> int:
    """Return the size on disk of the graph and its external data, in bytes."""
    stored = (v.const_value for v in ir.load(path).graph.initializers.values())
    files = {path.parent / t.location for t in stored if isinstance(t, ir.ExternalTensor)}
    return sum(file.stat().st_size for file in (path, *files))
