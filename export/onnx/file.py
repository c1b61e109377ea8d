"""Read and write ONNX files whose weights are external data.

Weights are memory-mapped and written one tensor at a time, so models may be larger than memory and than protobuf's
limit of 2 GB. This module does not know what is done to a graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common as passes

from calotype.errors import SourceError, first_line

MODEL = "model.onnx"
INLINE_BYTES = 256  # tensors up to this size stay inside the graph's file

_SHAPE_BYTES = 1024  # an upper bound for a shape or a list of axes
_INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)


def open_graph(source: Path) -> ir.Model:
    """Open a graph with types for every tensor, and with Constant nodes lifted to initializers.

    Raises `SourceError` for an unreadable file, and for graphs with subgraphs or functions: `trace` writes none.
    """
    try:
        model = ir.load(source)
    except Exception as broken:  # protobuf raises its own kinds
        raise SourceError(f"{source} cannot be read as ONNX: {first_line(broken)}") from None
    inner = [n for n in model.graph if any(a.type in _GRAPHS for a in n.attributes.values())]
    if inner or model.functions:
        what = f"node {inner[0].name} ({inner[0].op_type}) holds a subgraph" if inner else "it has functions"
        raise SourceError(f"cannot use {source}: {what}. Export it without control flow and with inlined functions.")
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    if _untyped(model):
        _into_memory(v for v in model.graph.initializers.values() if _read_by_inference(v))
        passes.ShapeInferencePass()(model)
    for node, name in _untyped(model):
        raise SourceError(f"cannot use {source}: the type of {name}, an output of {label(node)}, is unknown.")
    return model


def _untyped(model: ir.Model) -> list[tuple[ir.Node, str]]:
    return [(n, v.name) for n in model.graph for v in n.outputs if v.name and v.type is None]


def label(node: ir.Node) -> str:
    """Return a node's name, or its operator and first output if it has no name."""
    return node.name or f"{node.op_type}:{node.outputs[0].name}"


def tensors(model: ir.Model) -> list[ir.Value]:
    """Return every named tensor of the graph: inputs, initializers, and outputs of nodes."""
    computed = (v for n in model.graph for v in n.outputs if v.name)
    return list(dict.fromkeys([*model.graph.inputs, *model.graph.initializers.values(), *computed]))


def save_graph(model: ir.Model, out: Path, *, inline_bytes: int | None = None) -> None:
    """Write `out`, and `out`.data with every tensor larger than `inline_bytes` (None: `INLINE_BYTES`).

    Shapes, axes and resize scales stay in the graph: ONNX Runtime's shape inference does not read them from external
    data.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    passes.RemoveUnusedNodesPass()(model)  # and unused initializers
    limit = INLINE_BYTES if inline_bytes is None else inline_bytes
    constants = [(v, v.const_value) for v in model.graph.initializers.values() if v.const_value is not None]
    outside = [(v, tensor) for v, tensor in constants if tensor.nbytes > limit and not _read_by_inference(v)]
    _into_memory({v for v, _ in constants} - {v for v, _ in outside})
    stored = ir.external_data.convert_tensors_to_external(
        [tensor for _, tensor in outside], base_dir=out.parent, relative_path=f"{out.name}.data"
    )
    for (value, _), external in zip(outside, stored, strict=True):
        value.const_value = external
    ir.save(model, out)


def _read_by_inference(value: ir.Value) -> bool:
    tensor = value.const_value
    small = tensor is not None and len(tensor.shape) <= 1 and tensor.nbytes <= _SHAPE_BYTES
    return small and (value.dtype in _INTEGERS or any(n.op_type in ("Resize", "Range") for n in value.consumers()))


def _into_memory(values: Iterable[ir.Value]) -> None:
    for value in values:
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)


def bytes_of(path: Path) -> int:
    """Return the size on disk of the graph and its external data, in bytes."""
    stored = (v.const_value for v in ir.load(path).graph.initializers.values())
    files = {path.parent / t.location for t in stored if isinstance(t, ir.ExternalTensor)}
    return sum(file.stat().st_size for file in (path, *files))


_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
