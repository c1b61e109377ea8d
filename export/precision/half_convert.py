"""Convert a float32 graph to half precision: fp16 or bf16 inside, float32 at the inputs, outputs and in islands.

Tensors keep their names where possible, so the bindings of the float32 graph also work for the lowered graph.
`keep_fp32` chooses from real inputs the nodes that should stay in float32. `lower` follows that choice, and also
keeps nodes whose constants or operators do not support the type.

A strongly typed backend (TensorRT) computes in the graph's types; others (OpenVINO) read them as a hint.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from calotype.errors import InputError

from ..onnx.file import bytes_of, open_graph, save_graph, tensors
from .half_op_types import FLOAT, Division, constant_islands, divide, half_of, raise_opset, reads_any_type


@dataclass(frozen=True, kw_only=True)
class LowerReport:
    """Result of a conversion. Nodes without floats (shapes, masks) are neither lowered nor islands."""

    precision: str
    lowered: int  # nodes that compute in half precision
    islands: Mapping[str, str]  # node -> why it computes in float32
    casts: int  # Cast nodes added between the two
    bytes_before: int  # model.onnx and its data
    bytes_after: int


def lower(source: Path, out: Path, *, precision: str, islands: Collection[str]) -> LowerReport:
    """Write the graph at `source` in "fp16" or "bf16" to `out`, with its weights in `out`.data.

    Args:
        islands: nodes that stay in float32, optionally mapped to the reasons for the report.

    Raises:
        InputError: the precision or a node is unknown.
        SourceError: the graph cannot be lowered.
    """
    half = half_of(precision)
    if out.exists() and out.samefile(source):
        message = f"cannot write the lowered graph to {out}: it is the source. Choose another file."
        raise InputError(message, argument="out", got=str(out))
    model = open_graph(source)
    raise_opset(model, half)
    reasons = dict(islands) if isinstance(islands, Mapping) else dict.fromkeys(islands, "requested")
    division = divide(model, half, {**constant_islands(model, half), **reasons})
    casts = _Rewriter(model, division).run()
    save_graph(model, out)
    return LowerReport(
        precision=precision,
        lowered=len(division.lowered),
        islands=division.islands,
        casts=casts,
        bytes_before=bytes_of(source),
        bytes_after=bytes_of(out),
    )


class _Rewriter:
    """Changes a graph in place. A tensor that is read in both precisions is cast (or stored) once for all readers."""

    def __init__(self, model: ir.Model, division: Division) -> None:
        self._model, self._graph = model, model.graph
        self._division, self._half = division, division.half
        self._casts: dict[tuple[str, ir.DataType], ir.Value] = {}
        values = tensors(model)
        self._floats = frozenset(v for v in values if v.dtype == FLOAT)  # half tensors of the source stay
        self._names = {str(v.name) for v in values}

    def run(self) -> int:
        """Rewrite every node in order, and return the number of casts."""
        for node in list(self._graph):  # in the order of computation: inputs have their final types
            slots = self._division.lowered.get(node)
            for i, value in enumerate(node.inputs):
                if value is None or value not in self._floats or reads_any_type(node, i):
                    continue
                dtype = self._half.dtype if slots and i in slots.inputs else FLOAT
                if value.dtype != dtype:
                    node.replace_input_with(i, self._as(value, dtype))
            if slots:
                self._retype(node, slots.outputs)
        self._outputs()
        return sum(1 for value in self._casts.values() if value.producer() is not None)

    def _retype(self, node: ir.Node, outputs: Collection[int]) -> None:
        for i in outputs:
            node.outputs[i].dtype = self._half.dtype
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", self._half.dtype.value)
        elif node.op_type == "ConstantOfShape":
            value = node.attributes.get("value")
            number = ir.tensor([0.0]) if value is None else value.as_tensor()
            node.attributes["value"] = ir.AttrTensor("value", self._half.convert(number))

    def _as(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        key = (str(value.name), dtype)
        if key not in self._casts:
            constant = value.const_value if value.is_initializer() else None
            self._casts[key] = self._cast(value, dtype) if constant is None else self._stored(key[0], constant)
        return self._casts[key]

    def _stored(self, name: str, constant: ir.TensorProtocol) -> ir.Value:
        """Add a half-precision initializer. The float32 one is removed when nothing reads it."""
        name = self._name(f"{name}.{self._half.name}")
        return ir.tape.Tape(self._graph).initializer(self._half.convert_later(constant, name))

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        kind = "fp32" if dtype == FLOAT else self._half.name
        name, cast = (self._name(f"{value.name}.{suffix}") for suffix in (f"to_{kind}", kind))
        output = ir.val(cast, dtype=dtype, shape=value.shape)
        node = ir.node("Cast", [value], {"to": dtype.value}, name=name, outputs=[output])
        producer = value.producer()
        if producer is not None:
            self._graph.insert_after(producer, node)
        else:
            self._graph.insert_before(self._graph[0], node)
        return output

    def _outputs(self) -> None:
        """Keep the names and the float32 type of the graph's outputs, and rename the half tensors behind them."""
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
