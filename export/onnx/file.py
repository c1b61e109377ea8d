"""ONNX graphs as files: opened without their weights, written with the weights in one file beside them.

Weights are mapped from the file they are in and written one at a time, so that a model larger than memory, or than the
2 GB that a protobuf may be, passes through. Knows nothing of what is done to a graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common as passes

from calotype.errors import SourceError, first_line

MODEL = "model.onnx"
INLINE_BYTES = 256  # a tensor of at most this many bytes stays inside the graph's own file

_SHAPE_BYTES = 1024  # no shape, and no list of axes, takes more
_WHOLE = (ir.DataType.INT32, ir.DataType.INT64)


def open_graph(source: Path) -> ir.Model:
    """The graph, every tensor typed, its Constant nodes turned into initializers.

    Raises `SourceError` for what cannot be read, and for graphs with subgraphs or functions: no export of ours has any.
    """
    try:
        model = ir.load(source)
    except Exception as broken:  # protobuf raises its own kinds
        raise SourceError(f"{source} cannot be read as ONNX: {first_line(broken)}") from None
    inner = [n for n in model.graph if any(a.type in _GRAPHS for a in n.attributes.values())]
    if inner or model.functions:
        what = f"node {inner[0].name} ({inner[0].op_type}) holds a graph of its own" if inner else "it holds functions"
        raise SourceError(f"{source}: {what}; export it without control flow, and with functions inlined.")
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    if _untyped(model):
        _into_memory(v for v in model.graph.initializers.values() if _read_by_inference(v))
        passes.ShapeInferencePass()(model)
    for node, name in _untyped(model):
        raise SourceError(f"{source}: the type of {name}, which {label(node)} makes, is not known.")
    return model


def _untyped(model: ir.Model) -> list[tuple[ir.Node, str]]:
    return [(n, v.name) for n in model.graph for v in n.outputs if v.name and v.type is None]


def label(node: ir.Node) -> str:
    """A node's name; where it has none, its first output's."""
    return node.name or f"{node.op_type}:{node.outputs[0].name}"


def tensors(model: ir.Model) -> list[ir.Value]:
    """Every named tensor of the graph: inputs, initializers, and what nodes compute."""
    computed = (v for n in model.graph for v in n.outputs if v.name)
    return list(dict.fromkeys([*model.graph.inputs, *model.graph.initializers.values(), *computed]))


def save_graph(model: ir.Model, out: Path, *, inline_bytes: int | None = None) -> None:
    """Write `out` and, beside it, `out`.data with every tensor above `inline_bytes` (None: `INLINE_BYTES`).

    Shapes, axes and scales of sizes stay in the graph: ONNX Runtime opens none whose inference would have to look for
    them in another file.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    passes.RemoveUnusedNodesPass()(model)  # and the initializers that nothing reads any more
    most = INLINE_BYTES if inline_bytes is None else inline_bytes
    held = [(v, v.const_value) for v in model.graph.initializers.values() if v.const_value is not None]
    outside = [(v, tensor) for v, tensor in held if tensor.nbytes > most and not _read_by_inference(v)]
    _into_memory({v for v, _ in held} - {v for v, _ in outside})
    stored = ir.external_data.convert_tensors_to_external(
        [tensor for _, tensor in outside], base_dir=out.parent, relative_path=f"{out.name}.data"
    )
    for (value, _), external in zip(outside, stored, strict=True):
        value.const_value = external
    ir.save(model, out)


def _read_by_inference(value: ir.Value) -> bool:
    tensor = value.const_value
    small = tensor is not None and len(tensor.shape) <= 1 and tensor.nbytes <= _SHAPE_BYTES
    return small and (value.dtype in _WHOLE or any(n.op_type in ("Resize", "Range") for n in value.consumers()))


def _into_memory(values: Iterable[ir.Value]) -> None:
    for value in values:
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)


def bytes_of(path: Path) -> int:
    """What the graph and its external data take on disk."""
    stored = (v.const_value for v in ir.load(path).graph.initializers.values())
    files = {path.parent / t.location for t in stored if isinstance(t, ir.ExternalTensor)}
    return sum(file.stat().st_size for file in (path, *files))


_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
