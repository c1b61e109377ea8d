"""A float32 graph with its weights in int8 or int4 and all arithmetic in float32: for where memory is short, not speed.

Each weight of a Conv, Gemm or MatMul becomes integers with a float32 scale and a DequantizeLinear (opset 21) before the
node that reads it: one scale an output channel in int8, one for every `BLOCK` numbers along the summed axis in int4.
A Gemm becomes MatMul and Add, because ONNX Runtime multiplies by integers in a MatMul alone; elsewhere it makes float32
of them at every run. OpenVINO does so for a Conv, once, when it compiles: there only the file is smaller.
Knows nothing of activations (`quantize` does).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calotype.errors import InputError

from ..onnx.file import bytes_of, open_graph, save_graph
from .half_op_types import FLOAT

BLOCK = 32
SMALL = 4096  # numbers: a weight of fewer saves nothing worth its error

_TYPES = {8: (ir.DataType.INT8, 127), 4: (ir.DataType.INT4, 7)}
# Scales tried for each block of int4, as parts of the one at which nothing is clipped: fewer levels lost to outliers.
_CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class WeightOnlyReport:
    """What became of a graph. A weight that several nodes read in one way is stored once."""

    bits: int
    weights: int
    worst: float  # relative L2 error of the worst weight
    bytes_before: int  # of model.onnx and its data
    bytes_after: int


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Where the output channels of a weight lie, and where the numbers that are summed to one output."""

    channels: int
    summed: int
    turned: bool  # a Gemm's rows become a MatMul's columns

    def read(self, tensor: ir.TensorProtocol) -> Array:
        """The weight as it is to be stored."""
        return tensor.numpy().T if self.turned else tensor.numpy()


def weight_only(source: Path, out: Path, *, bits: int, inline_bytes: int | None = None) -> WeightOnlyReport:
    """Write the graph at `source` with int8 or int4 weights to `out`, its tensors in `out`.data.

    Raises `InputError` for other numbers of bits, `SourceError` for a graph that cannot be read.
    """
    if bits not in _TYPES:
        raise InputError(f"weights in {bits} bits are not known; there are {' and '.join(map(str, _TYPES))}.")
    if out.exists() and out.samefile(source):
        raise InputError(f"{out} is the source; name another file for the result.")
    model = open_graph(source)
    if model.opset_imports[""] < 21:
        raise InputError(f"{source} is of opset {model.opset_imports['']}; int4 and blocks of weights need 21.")
    writer = _Writer(model.graph, bits)
    for node in list(model.graph):
        layout = _layout(node)
        if layout is not None:
            writer.replace(node, layout)
    save_graph(model, out, inline_bytes=inline_bytes)
    return WeightOnlyReport(
        bits=bits,
        weights=len(writer.errors),
        worst=max(writer.errors, default=0.0),
        bytes_before=bytes_of(source),
        bytes_after=bytes_of(out),
    )


def _layout(node: ir.Node) -> _Layout | None:
    """None where the node reads no weight that is worth storing in fewer bits."""
    if node.domain or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    weight = node.inputs[1]
    if weight is None or weight.const_value is None or weight.dtype != FLOAT or weight.const_value.size < SMALL:
        return None
    if node.op_type == "Conv":
        return _Layout(channels=0, summed=1, turned=False)
    if len(weight.const_value.shape) != 2:
        return None
    said = {name: attribute.value for name, attribute in node.attributes.items()}
    if said.get("transA", 0) or said.get("alpha", 1) != 1 or said.get("beta", 1) != 1:
        return None
    return _Layout(channels=1, summed=0, turned=bool(said.get("transB", 0)))


class _Writer:
    """Puts weights in integers into a graph, each once for every way it is read."""

    def __init__(self, graph: ir.Graph, bits: int) -> None:
        self._graph, self._bits = graph, bits
        self._done: dict[tuple[str, _Layout], ir.Value] = {}
        self.errors: list[float] = []  # relative L2, of each weight

    def replace(self, node: ir.Node, layout: _Layout) -> None:
        """Let the node read integers, unless its weight does not divide into blocks."""
        weight = node.inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        if self._bits == 4 and layout.read(weight.const_value).shape[layout.summed] % BLOCK:
            return
        key = (str(weight.name), layout)
        if key not in self._done:
            self._done[key] = self._dequantized(weight, weight.const_value, layout, node)
        node.replace_input_with(1, self._done[key])
        if node.op_type == "Gemm":
            self._as_matmul(node)

    def _as_matmul(self, gemm: ir.Node) -> None:
        matmul = ir.node("MatMul", gemm.inputs[:2], name=gemm.name)
        out, bias = gemm.outputs[0], gemm.inputs[2] if len(gemm.inputs) > 2 else None
        nodes = (
            [matmul] if bias is None else [matmul, ir.node("Add", [matmul.outputs[0], bias], name=f"{gemm.name}.bias")]
        )
        matmul.outputs[0].name = f"{out.name}.unbiased"
        matmul.outputs[0].type, matmul.outputs[0].shape = out.type, out.shape
        ir.convenience.replace_nodes_and_values(self._graph, gemm, [gemm], nodes, [out], [nodes[-1].outputs[0]])

    def _dequantized(self, weight: ir.Value, tensor: ir.TensorProtocol, layout: _Layout, before: ir.Node) -> ir.Value:
        name, bits = f"{weight.name}.int{self._bits}.{layout.channels}", self._bits
        numbers = layout.read(tensor)
        scale = _scale(numbers, layout, bits)
        lost = numbers - _whole(numbers, scale, layout, bits) * _spread(scale, layout, bits)
        self.errors.append(float(np.linalg.norm(lost) / max(float(np.linalg.norm(numbers)), 1e-30)))
        lazy = ir.LazyTensor(_stored(tensor, scale, layout, bits), _TYPES[bits][0], ir.Shape(numbers.shape), name=name)
        stored = scale.reshape(-1) if bits == 8 else scale
        inputs = [
            self._constant(name, numbers.shape, lazy),
            self._constant(f"{name}.scale", stored.shape, ir.tensor(stored)),
        ]
        shape = {"axis": layout.channels} if bits == 8 else {"axis": layout.summed, "block_size": BLOCK}
        node = ir.node("DequantizeLinear", inputs, shape, name=f"{name}.dequantized")
        out = node.outputs[0]
        out.name, out.shape, out.dtype = f"{name}.float", ir.Shape(numbers.shape), FLOAT
        self._graph.insert_before(before, node)
        return out

    def _constant(self, name: str, shape: tuple[int, ...], tensor: ir.TensorProtocol) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._graph.register_initializer(value)
        return value


def _scale(weight: Array, layout: _Layout, bits: int) -> Array:
    """Float32: of each output channel in int8; in int4 of each block, the one that loses least of those tried."""
    if bits == 8:
        axes = tuple(a for a in range(weight.ndim) if a != layout.channels)
        return _positive(np.abs(weight).max(axis=axes, keepdims=True) / _TYPES[8][1])
    shape, axis = weight.shape, layout.summed
    blocks = weight.reshape(*shape[:axis], -1, BLOCK, *shape[axis + 1 :])
    whole = _positive(np.abs(blocks).max(axis=axis + 1) / _TYPES[4][1])
    best, least = whole, np.full(whole.shape, np.inf, dtype=np.float32)
    for clip in _CLIPS:
        tried = whole * np.float32(clip)
        lost = weight - _whole(weight, tried, layout, bits) * _spread(tried, layout, bits)
        squares = np.square(lost).reshape(blocks.shape).sum(axis=axis + 1)
        best, least = np.where(squares < least, tried, best), np.minimum(squares, least)
    return best


def _positive(scale: Array) -> Array:
    """A channel of zeros has no scale of its own; any will do."""
    return np.where(scale > 0, scale, 1).astype(np.float32)


def _spread(scale: Array, layout: _Layout, bits: int) -> Array:
    """The scales in a shape that broadcasts to the weight's."""
    return scale if bits == 8 else np.repeat(scale, BLOCK, axis=layout.summed)


def _whole(weight: Array, scale: Array, layout: _Layout, bits: int) -> Array:
    most = _TYPES[bits][1]
    rounded: Array = np.rint(weight / _spread(scale, layout, bits)).clip(-most, most)
    return rounded


def _stored(tensor: ir.TensorProtocol, scale: Array, layout: _Layout, bits: int) -> Callable[[], ir.Tensor[Any]]:
    def make() -> ir.Tensor[Any]:
        dtype = _TYPES[bits][0]
        return ir.Tensor(_whole(layout.read(tensor), scale, layout, bits).astype(dtype.numpy()), dtype=dtype)

    return make
