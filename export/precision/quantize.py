"""Quantize an ONNX graph to int8 or fp8 with explicit quantize/dequantize pairs, for every backend that reads them.

Quantization is symmetric: one scale for an activation, one for each output channel of a weight. Weights are stored in
eight bits behind a DequantizeLinear. Biases do not change. `calibrate` finds the ranges, and the tuning chooses the
nodes to keep; this module runs no graph.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..onnx.file import bytes_of, save_graph
from .candidates import Candidate, candidates_in


@dataclass(frozen=True, kw_only=True)
class Format:
    """An eight-bit format. `fused` is the layout that ONNX Runtime can fuse, see `insert_pairs`."""

    activation: ir.DataType
    weight: ir.DataType
    zero: int  # zero point of activations
    largest: float  # number of the type, after subtracting the zero point
    fused: bool


_INT8, _UINT8, _FP8 = ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.FLOAT8E4M3FN
FORMATS = {
    "int8": Format(activation=_INT8, weight=_INT8, zero=0, largest=127, fused=False),
    "uint8": Format(activation=_UINT8, weight=_INT8, zero=128, largest=127, fused=True),
    "fp8": Format(activation=_FP8, weight=_FP8, zero=0, largest=448, fused=False),
}


@dataclass(frozen=True, kw_only=True)
class QuantizeReport:
    """Names of the quantized and the kept nodes, and the size of the graph and its weights on disk."""

    quantized: tuple[str, ...]
    kept: tuple[str, ...]
    size_bytes: int


def quantize(
    source: Path, out: Path, *, ranges: Mapping[str, float], keep: Collection[str] = (), dtype: str = "int8"
) -> QuantizeReport:
    """Write the graph with every candidate in eight bits, except `keep`, to `out`, with its weights in `out`.data.

    The source may be float32 or half precision; a scale has the type of the tensor that it scales.

    Args:
        ranges: magnitudes by tensor; larger numbers saturate.
        keep: nodes that are not quantized.
        dtype: "int8" (TensorRT, OpenVINO), "uint8" (ONNX Runtime) or "fp8" (E4M3, TensorRT).

    Raises:
        KeyError: a range is missing.
    """
    model = ir.load(source)
    names = [candidate.node for candidate in candidates_in(model)]
    done = insert_pairs(model, ranges, keep=keep, dtype=dtype)
    save_graph(model, out)
    kept = tuple(name for name in names if name not in done)
    return QuantizeReport(quantized=done, kept=kept, size_bytes=bytes_of(out))


def insert_pairs(model: ir.Model, ranges: Mapping[str, float], *, keep: Collection[str], dtype: str) -> tuple[str, ...]:
    """Quantize a graph in memory, and return the names of the quantized nodes.

    ONNX Runtime needs a special layout. On x86 it is fast only with unsigned activations (the same numbers with a zero
    point of 128), which TensorRT rejects. It computes a convolution in int8 only if the result is quantized as well,
    which costs accuracy on OpenVINO. It never computes a Gemm, or a convolution whose result is a graph output, in
    int8: these are not quantized.
    """
    chosen, form = [c for c in candidates_in(model) if c.node not in keep], FORMATS[dtype]
    if form.fused:
        chosen = [c for c in chosen if c.kind != "Gemm" and not c.operation.outputs[0].is_graph_output()]
    pairs = _Pairs(model.graph, ranges, form)
    for c in chosen:
        c.operation.replace_input_with(0, pairs.activation(c.operation.inputs[0]))
        c.operation.replace_input_with(1, pairs.weight(c))
    for c in chosen:
        if form.fused and c.kind == "Conv":
            pairs.replace(c.operation.outputs[0])
    for name in {c.weight for c in chosen}:
        if not model.graph.initializers[name].uses():
            del model.graph.initializers[name]
    return tuple(c.node for c in chosen)


class _Pairs:
    """Adds quantizers and dequantizers to a graph, one pair for each tensor."""

    def __init__(self, graph: ir.Graph, ranges: Mapping[str, float], form: Format) -> None:
        self._graph, self._ranges, self._form = graph, ranges, form
        self._restored: dict[str, ir.Value] = {}

    def activation(self, value: ir.Value | None) -> ir.Value:
        """Return the tensor after quantizing and dequantizing."""
        assert value is not None
        name = str(value.name)
        if name not in self._restored:
            kind, number = value.dtype or ir.DataType.FLOAT, self._form.activation
            scale = np.asarray(self._ranges[name] / self._form.largest).astype(kind.numpy())
            scaling = (
                self._constant(f"{name}.scale", scale if scale else np.ones_like(scale)),  # 1 for a tensor of zeros
                self._constant(f"{name}.zero", np.asarray(self._form.zero).astype(number.numpy())),
            )
            quantized = ir.val(f"{name}.quantized", dtype=number, shape=value.shape)
            restored = ir.val(f"{name}.restored", dtype=kind, shape=value.shape)
            nodes = [
                ir.node("QuantizeLinear", [value, *scaling], outputs=[quantized]),
                ir.node("DequantizeLinear", [quantized, *scaling], outputs=[restored]),
            ]
            producer = value.producer()
            if producer is None:
                self._graph.insert_before(self._graph[0], nodes)
            else:
                self._graph.insert_after(producer, nodes)
            self._restored[name] = restored
        return self._restored[name]

    def replace(self, value: ir.Value) -> None:
        """Make every reader of the tensor read the quantized and dequantized tensor."""
        restored = self.activation(value)
        for user, index in tuple(value.uses()):
            if user.op_type != "QuantizeLinear":
                user.replace_input_with(index, restored)

    def weight(self, candidate: Candidate) -> ir.Value:
        """Store the node's weight in eight bits, and return the dequantized tensor."""
        value, axis = candidate.operation.inputs[1], candidate.axis
        assert value is not None
        assert value.const_value is not None
        name = f"{value.name}.{axis}"
        if name not in self._restored:
            scale = _channel_scales(value.const_value.numpy(), axis, self._form.largest)
            inputs = [
                self._constant(f"{name}.quantized", _quantized(value.const_value, scale, axis, self._form)),
                self._constant(f"{name}.scale", scale),
                self._constant(f"{name}.zero", np.zeros(scale.shape, self._form.weight.numpy())),
            ]
            restored = ir.val(f"{name}.restored", dtype=value.const_value.dtype, shape=value.shape)
            dequantize = ir.node("DequantizeLinear", inputs, {"axis": axis}, outputs=[restored])
            self._graph.insert_before(candidate.operation, dequantize)
            self._restored[name] = restored
        return self._restored[name]

    def _constant(self, name: str, numbers: NDArray[Any] | ir.TensorProtocol) -> ir.Value:
        tensor = ir.Tensor(numbers, name=name) if isinstance(numbers, np.ndarray) else numbers
        return ir.tape.Tape(self._graph).initializer(tensor, name)


def _channel_scales(weight: NDArray[Any], axis: int, top: float) -> NDArray[Any]:
    """Return one scale for each output channel, in the weight's type.  # [O]"""
    others = tuple(other for other in range(weight.ndim) if other != axis)
    amax = np.abs(weight).max(axis=others).astype(np.float32)
    scale: NDArray[Any] = (amax / top).astype(weight.dtype)
    scale[scale == 0] = 1  # a channel of zeros
    return scale


def _quantized(weight: ir.TensorProtocol, scale: NDArray[Any], axis: int, form: Format) -> ir.LazyTensor:
    """Return the weight in units of its scales. It is computed when written, so memory never holds all weights."""

    def make() -> ir.TensorProtocol:
        wide = [scale.size if other == axis else 1 for other in range(len(weight.shape))]
        units = weight.numpy().astype(np.float32) / scale.astype(np.float32).reshape(wide)
        rounded = np.rint(units) if form.weight.is_integer() else units
        return ir.Tensor(rounded.clip(-form.largest, form.largest).astype(form.weight.numpy()))

    return ir.LazyTensor(make, dtype=form.weight, shape=ir.Shape(weight.shape.numpy()))
