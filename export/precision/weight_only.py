"""Quantize only the weights of a float32 graph, to int8 or int4: this saves memory, not time.

Each weight of a Conv, Gemm or MatMul becomes integers with float32 scales and a DequantizeLinear (opset 21) before the
node that reads it. int8 has one scale per output channel, int4 one per `BLOCK` numbers along the summed axis. A Gemm
becomes MatMul and Add, because ONNX Runtime multiplies by integers only in a MatMul; elsewhere it dequantizes at every
run. OpenVINO dequantizes a Conv's weight once, when it compiles: there only the file is smaller. `quantize` handles
activations.
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
SMALL = 4096  # numbers: quantizing a smaller weight does not save enough to justify its error

_TYPES = {8: (ir.DataType.INT8, 127), 4: (ir.DataType.INT4, 7)}
# Scales to try for each int4 block, relative to the one that clips nothing: outliers then cost fewer levels.
_CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class WeightOnlyReport:
    """Result of a conversion. A weight that several nodes read in one way is stored once."""

    bits: int
    weights: int
    worst: float  # relative L2 error of the worst weight
    bytes_before: int  # model.onnx and its data
    bytes_after: int


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """The axes of a weight: its output channels, and the axis that is summed to one output."""

    channels: int
    summed: int
    transposed: bool  # a Gemm's rows become a MatMul's columns

    def read(self, tensor: ir.TensorProtocol) -> Array:
        """Return the weight in the layout to store."""
        return tensor.numpy().T if self.transposed else tensor.numpy()


def weight_only(source: Path, out: Path, *, bits: int, inline_bytes: int | None = None) -> WeightOnlyReport:
    """Write the graph at `source` with int8 or int4 weights to `out`, with its tensors in `out`.data.

    Raises:
        InputError: `bits` is not 8 or 4, or the graph's opset is too old.
        SourceError: the graph cannot be read.
    """
    if bits not in _TYPES:
        raise InputError(f"cannot store weights in {bits} bits; expected {' or '.join(map(str, _TYPES))}.")
    if out.exists() and out.samefile(source):
        raise InputError(f"cannot write the result to {out}: it is the source. Choose another file.")
    model = open_graph(source)
    if model.opset_imports[""] < 21:
        raise InputError(f"cannot quantize {source}: got opset {model.opset_imports['']}, expected 21 or later.")
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
    """Return the layout of the node's weight, or None if quantizing it saves nothing."""
    if node.domain or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    weight = node.inputs[1]
    if weight is None or weight.const_value is None or weight.dtype != FLOAT or weight.const_value.size < SMALL:
        return None
    if node.op_type == "Conv":
        return _Layout(channels=0, summed=1, transposed=False)
    if len(weight.const_value.shape) != 2:
        return None
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    if attributes.get("transA", 0) or attributes.get("alpha", 1) != 1 or attributes.get("beta", 1) != 1:
        return None
    return _Layout(channels=1, summed=0, transposed=bool(attributes.get("transB", 0)))


class _Writer:
    """Adds integer weights to a graph, one for each weight and layout."""

    def __init__(self, graph: ir.Graph, bits: int) -> None:
        self._graph, self._bits = graph, bits
        self._done: dict[tuple[str, _Layout], ir.Value] = {}
        self.errors: list[float] = []  # relative L2 of each weight

    def replace(self, node: ir.Node, layout: _Layout) -> None:
        """Make the node read integers, unless its weight cannot be divided into blocks."""
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
        lost = numbers - _rounded(numbers, scale, layout, bits) * _broadcast(scale, layout, bits)
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
    """Return float32 scales: one per output channel in int8; in int4 one per block, the best of `_CLIPS`."""
    if bits == 8:
        axes = tuple(a for a in range(weight.ndim) if a != layout.channels)
        return _positive(np.abs(weight).max(axis=axes, keepdims=True) / _TYPES[8][1])
    shape, axis = weight.shape, layout.summed
    blocks = weight.reshape(*shape[:axis], -1, BLOCK, *shape[axis + 1 :])
    unclipped = _positive(np.abs(blocks).max(axis=axis + 1) / _TYPES[4][1])
    best, smallest = unclipped, np.full(unclipped.shape, np.inf, dtype=np.float32)
    for clip in _CLIPS:
        scale = unclipped * np.float32(clip)
        lost = weight - _rounded(weight, scale, layout, bits) * _broadcast(scale, layout, bits)
        squares = np.square(lost).reshape(blocks.shape).sum(axis=axis + 1)
        best, smallest = np.where(squares < smallest, scale, best), np.minimum(squares, smallest)
    return best


def _positive(scale: Array) -> Array:
    """Replace the scale of a channel of zeros with 1; any scale works."""
    return np.where(scale > 0, scale, 1).astype(np.float32)


def _broadcast(scale: Array, layout: _Layout, bits: int) -> Array:
    """Return the scales in a shape that broadcasts to the weight's."""
    return scale if bits == 8 else np.repeat(scale, BLOCK, axis=layout.summed)


def _rounded(weight: Array, scale: Array, layout: _Layout, bits: int) -> Array:
    limit = _TYPES[bits][1]
    rounded: Array = np.rint(weight / _broadcast(scale, layout, bits)).clip(-limit, limit)
    return rounded


def _stored(tensor: ir.TensorProtocol, scale: Array, layout: _Layout, bits: int) -> Callable[[], ir.Tensor[Any]]:
    def make() -> ir.Tensor[Any]:
        dtype = _TYPES[bits][0]
        return ir.Tensor(_rounded(layout.read(tensor), scale, layout, bits).astype(dtype.numpy()), dtype=dtype)

    return make
