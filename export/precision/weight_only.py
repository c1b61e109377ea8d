"""Quantize only the weights of a float32 graph, to int8 or int4: this saves memory, not time.

Each weight of a Conv, Gemm or MatMul becomes integers with float32 scales and a DequantizeLinear (opset 21) before the
node that reads it. int8 has one scale per output channel, int4 one per `BLOCK` numbers along the summed axis. A Gemm
becomes MatMul and Add, because ONNX Runtime multiplies by integers only in a MatMul; elsewhere it dequantizes at every
run. OpenVINO dequantizes a Conv's weight once, when it compiles: there only the file is smaller. `quantize` handles
activations.
"""

from __future__ import annotations

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

_TYPES = {8: (ir.DataType.INT8, 127), 4: (ir.DataType.INT4, 7)}  # bits -> type, largest integer
# Scales to try for each int4 block, relative to the one that clips nothing: outliers then cost fewer levels.
_CLIPS = {8: (1.0,), 4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)}

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class WeightOnlyReport:
    """Result of a conversion. A weight that several nodes read in one way is stored once."""

    bits: int
    weights: int
    worst: float  # relative L2 error of the worst weight
    bytes_before: int  # model.onnx and its data
    bytes_after: int


def weight_only(source: Path, out: Path, *, bits: int) -> WeightOnlyReport:
    """Write the graph at `source` with int8 or int4 weights to `out`, with its tensors in `out`.data.

    Raises:
        InputError: `bits` is not 8 or 4, or the graph's opset is too old.
        SourceError: the graph cannot be read.
    """
    if bits not in _TYPES:
        expected = " or ".join(map(str, _TYPES))
        message = f"cannot store weights in {bits} bits; expected {expected}."
        raise InputError(message, argument="bits", got=bits, expected=expected)
    if out.exists() and out.samefile(source):
        message = f"cannot write the result to {out}: it is the source. Choose another file."
        raise InputError(message, argument="out", got=str(out))
    model = open_graph(source)
    if model.opset_imports[""] < 21:
        opset = model.opset_imports[""]
        message = f"cannot quantize {source}: got opset {opset}, expected 21 or later."
        raise InputError(message, argument="source", got=opset, expected="21 or later")
    writer = _Writer(model.graph)
    for node in list(model.graph):
        layout = _layout(node, bits)
        if layout is not None:
            writer.replace(node, layout)
    save_graph(model, out)
    return WeightOnlyReport(
        bits=bits,
        weights=len(writer.errors),
        worst=max(writer.errors, default=0.0),
        bytes_before=bytes_of(source),
        bytes_after=bytes_of(out),
    )


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """How integers represent a weight, and the axes of its output channels and of the sum to one output."""

    bits: int
    channels: int
    summed: int
    transposed: bool  # a Gemm's rows become a MatMul's columns

    def read(self, tensor: ir.TensorProtocol) -> Array:
        """Return the weight in the layout to store; in int4 with the summed axis split into [blocks, BLOCK]."""
        numbers = tensor.numpy().T if self.transposed else tensor.numpy()
        if self.bits == 8:
            return numbers
        shape, axis = numbers.shape, self.summed
        return numbers.reshape(*shape[:axis], -1, BLOCK, *shape[axis + 1 :])

    def scale(self, numbers: Array) -> Array:
        """Return float32 scales, one per output channel or block, that broadcast to the result of `read`."""
        axes = {self.summed + 1} if self.bits == 4 else {*range(numbers.ndim)} - {self.channels}
        summed = tuple(sorted(axes))
        unclipped = np.abs(numbers).max(axis=summed, keepdims=True) / _TYPES[self.bits][1]
        unclipped = np.where(unclipped > 0, unclipped, 1).astype(np.float32)  # zeros: any scale works
        best, smallest = unclipped, np.full(unclipped.shape, np.inf, dtype=np.float32)
        for clip in _CLIPS[self.bits]:
            scale = unclipped * np.float32(clip)
            squares = np.square(numbers - self.integers(numbers, scale) * scale).sum(axis=summed, keepdims=True)
            best, smallest = np.where(squares < smallest, scale, best), np.minimum(squares, smallest)
        return best

    def integers(self, numbers: Array, scale: Array) -> Array:
        """Return the numbers in units of their scales."""
        limit = _TYPES[self.bits][1]
        rounded: Array = np.rint(numbers / scale).clip(-limit, limit)
        return rounded


def _layout(node: ir.Node, bits: int) -> _Layout | None:
    """Return the layout of the node's weight, or None if quantizing it saves nothing or int4 blocks do not fit."""
    if node.domain or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    weight = node.inputs[1]
    if weight is None or weight.const_value is None or weight.dtype != FLOAT or weight.const_value.size < SMALL:
        return None
    shape = weight.const_value.shape.numpy()
    if node.op_type == "Conv":
        layout = _Layout(bits=bits, channels=0, summed=1, transposed=False)
        return layout if bits == 8 or shape[1] % BLOCK == 0 else None
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    if attributes.get("transA", 0) or attributes.get("alpha", 1) != 1 or attributes.get("beta", 1) != 1:
        return None
    transposed = bool(attributes.get("transB", 0))
    if len(shape) != 2 or (bits == 4 and shape[int(transposed)] % BLOCK):
        return None
    return _Layout(bits=bits, channels=1, summed=0, transposed=transposed)


class _Writer:
    """Adds integer weights to a graph, one for each weight and layout."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._done: dict[tuple[str, _Layout], ir.Value] = {}
        self.errors: list[float] = []  # relative L2 of each weight

    def replace(self, node: ir.Node, layout: _Layout) -> None:
        """Make the node read integers."""
        weight = node.inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        key = (str(weight.name), layout)
        if key not in self._done:
            name = f"{weight.name}.int{layout.bits}.{layout.channels}"
            self._done[key] = self._dequantized(name, weight.const_value, layout, node)
        node.replace_input_with(1, self._done[key])
        if node.op_type == "Gemm":
            self._as_matmul(node)

    def _as_matmul(self, gemm: ir.Node) -> None:
        out, bias = gemm.outputs[0], gemm.inputs[2] if len(gemm.inputs) > 2 else None
        nodes = [ir.node("MatMul", gemm.inputs[:2], name=gemm.name)]
        unbiased = nodes[0].outputs[0]
        unbiased.name, unbiased.type, unbiased.shape = f"{out.name}.unbiased", out.type, out.shape
        if bias is not None:
            nodes.append(ir.node("Add", [unbiased, bias], name=f"{gemm.name}.bias"))
        ir.convenience.replace_nodes_and_values(self._graph, gemm, [gemm], nodes, [out], [nodes[-1].outputs[0]])

    def _dequantized(self, name: str, tensor: ir.TensorProtocol, layout: _Layout, before: ir.Node) -> ir.Value:
        numbers, dtype = layout.read(tensor), _TYPES[layout.bits][0]
        scale = layout.scale(numbers)
        lost = numbers - layout.integers(numbers, scale) * scale
        self.errors.append(float(np.linalg.norm(lost) / max(float(np.linalg.norm(numbers)), 1e-30)))
        shape = tensor.shape.numpy()[:: -1 if layout.transposed else 1]

        def stored() -> ir.Tensor[Any]:
            integers = layout.integers(layout.read(tensor), scale).reshape(shape)
            return ir.Tensor(integers.astype(dtype.numpy()), dtype=dtype)

        tape = ir.tape.Tape(self._graph)
        scales = scale.reshape(-1) if layout.bits == 8 else scale.squeeze(layout.summed + 1)
        inputs = [
            tape.initializer(ir.LazyTensor(stored, dtype, ir.Shape(shape), name=name)),
            tape.initializer(ir.tensor(scales), f"{name}.scale"),
        ]
        axes = {"axis": layout.channels} if layout.bits == 8 else {"axis": layout.summed, "block_size": BLOCK}
        output = ir.val(f"{name}.float", dtype=FLOAT, shape=shape)
        node = ir.node("DequantizeLinear", inputs, axes, name=f"{name}.dequantized", outputs=[output])
        self._graph.insert_before(before, node)
        return output
