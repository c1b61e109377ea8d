"""A float32 graph in half precision: fp16 or bf16 inside, float32 at its inputs and outputs, and in islands between.

Tensors keep their names where they can, so that the bindings of the float32 graph hold for the lowered one. Which nodes
had better stay in float32 is found by `find_islands`, which looks at real inputs; `lower` does what it is told, and
keeps besides what the type cannot hold or the operators do not take.

In a strongly typed backend (TensorRT) the graph's types are the precision; others (OpenVINO) read them as a hint.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from calotype.errors import InputError

from ..onnx.file import bytes_of, open_graph, save_graph, tensors
from .half_op_types import FLOAT, Division, constant_islands, divide, half_of, halved, raise_opset
from .keep_fp32 import find_islands

__all__ = ["LowerReport", "find_islands", "lower"]


@dataclass(frozen=True, kw_only=True)
class LowerReport:
    """What became of a graph. Nodes that compute on no floats (shapes, masks) are in neither number."""

    precision: str
    lowered: int  # nodes that compute in half precision
    islands: Mapping[str, str]  # node -> why it computes in float32
    casts: int  # nodes added between the two
    bytes_before: int  # of model.onnx and its data
    bytes_after: int


def lower(
    source: Path, out: Path, *, precision: str, islands: Collection[str], inline_bytes: int | None = None
) -> LowerReport:
    """Write the graph at `source` in "fp16" or "bf16" to `out`, with its weights in `out`.data.

    `islands` names nodes that stay in float32; where it is a mapping, with the reasons for the report. Raises
    `InputError` for a precision or a node that is not known, `SourceError` for a graph that cannot be lowered.
    """
    half = half_of(precision)
    if out.exists() and out.samefile(source):
        raise InputError(f"{out} is the source; name another file for the lowered graph.")
    model = open_graph(source)
    raise_opset(model, half)
    reasons = dict(islands) if isinstance(islands, Mapping) else dict.fromkeys(islands, "asked for")
    division = divide(model, half, {**constant_islands(model, half), **reasons})
    casts = _Rewriter(model, division).run()
    save_graph(model, out, inline_bytes=inline_bytes)
    return LowerReport(
        precision=precision,
        lowered=len(division.lowered),
        islands=division.islands,
        casts=casts,
        bytes_before=bytes_of(source),
        bytes_after=bytes_of(out),
    )


class _Rewriter:
    """Changes a graph in place. A tensor that is wanted in both precisions is cast, or stored, once for all readers."""

    def __init__(self, model: ir.Model, division: Division) -> None:
        self._model, self._graph = model, model.graph
        self._division, self._half = division, division.half
        self._casts: dict[tuple[str, ir.DataType], ir.Value] = {}
        values = tensors(model)
        self._floats = frozenset(v for v in values if v.dtype == FLOAT)  # a half tensor of the source's own stays one
        self._names = {str(v.name) for v in values}

    def run(self) -> int:
        """Every node in order; returns the number of casts."""
        for node in list(self._graph):  # in the order of computation: inputs have their final types
            slots = self._division.slots[node]
            lowered = node in self._division.lowered
            for i, value in enumerate(node.inputs):
                if value not in self._floats or i in slots.any_inputs:
                    continue
                wanted = self._half.dtype if lowered and i in slots.inputs else FLOAT
                if value is not None and value.dtype != wanted:
                    node.replace_input_with(i, self._as(value, wanted))
            if lowered:
                self._retype(node, slots.outputs)
        self._outputs()
        return sum(1 for value in self._casts.values() if value.producer() is not None)

    def _retype(self, node: ir.Node, outputs: Collection[int]) -> None:
        for i in outputs:
            node.outputs[i].dtype = self._half.dtype
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", self._half.dtype.value)
        elif node.op_type == "ConstantOfShape":
            said = node.attributes.get("value")
            number = ir.tensor([0.0]) if said is None else said.as_tensor()
            node.attributes["value"] = ir.AttrTensor("value", halved(number, self._half)())

    def _as(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        key = (str(value.name), dtype)
        if key not in self._casts:
            constant = value.const_value is not None and value.is_initializer()
            self._casts[key] = self._stored(value) if constant else self._cast(value, dtype)
        return self._casts[key]

    def _stored(self, value: ir.Value) -> ir.Value:
        """A second initializer; the float32 one goes when nothing reads it any more."""
        assert value.const_value is not None
        tensor = value.const_value
        name = self._name(f"{value.name}.{self._half.name}")
        lazy = ir.LazyTensor(halved(tensor, self._half), self._half.dtype, ir.Shape(tensor.numpy().shape), name=name)
        half = ir.Value(name=name, shape=value.shape, type=ir.TensorType(self._half.dtype), const_value=lazy)
        self._graph.register_initializer(half)
        return half

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        kind = "fp32" if dtype == FLOAT else self._half.name
        node = ir.node("Cast", [value], {"to": dtype.value}, name=self._name(f"{value.name}.to_{kind}"))
        cast = node.outputs[0]
        cast.name, cast.shape, cast.dtype = self._name(f"{value.name}.{kind}"), value.shape, dtype
        producer = value.producer()
        if producer is not None:
            self._graph.insert_after(producer, node)
        else:
            self._graph.insert_before(self._graph[0], node)
        return cast

    def _outputs(self) -> None:
        """The graph's outputs stay float32 under their names; the half tensors behind them take others."""
        for i, value in enumerate(self._graph.outputs):
            if value not in self._floats or value.dtype == FLOAT:
                continue
            name = str(value.name)
            cast = self._as(value, FLOAT)
            value.name = self._name(f"{name}.{self._half.name}")
            cast.name = name
            self._graph.outputs[i] = cast

    def _name(self, name: str) -> str:
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name
