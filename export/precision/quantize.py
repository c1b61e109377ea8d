"""Int8 and fp8 as explicit quantize/dequantize pairs in an ONNX graph, for every backend that reads such pairs.

Symmetric throughout: an activation has one scale, a weight one for each output channel, and weights are stored in eight
bits behind a dequantizer. Biases stay as they are. Ranges are `calibrate`'s to find, and which nodes are left alone is
the gate's to say; nothing here runs a graph.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .candidates import candidate_nodes


@dataclass(frozen=True, kw_only=True)
class Format:
    """A way to put numbers into eight bits. `fused` is the layout that ONNX Runtime can fuse, see `insert_pairs`."""

    activation: ir.DataType
    weight: ir.DataType
    zero: int  # of activations
    largest: float  # number of the type, after the zero is taken off
    fused: bool


_INT8, _UINT8, _FP8 = ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.FLOAT8E4M3FN
FORMATS = {
    "int8": Format(activation=_INT8, weight=_INT8, zero=0, largest=127, fused=False),
    "uint8": Format(activation=_UINT8, weight=_INT8, zero=128, largest=127, fused=True),
    "fp8": Format(activation=_FP8, weight=_FP8, zero=0, largest=448, fused=False),
}


@dataclass(frozen=True, kw_only=True)
class QuantizeReport:
    """What was done, by names of nodes, and the bytes on disk of the graph and its weights."""

    quantized: tuple[str, ...]
    kept: tuple[str, ...]
    size_bytes: int


def quantize(
    source: Path,
    out: Path,
    *,
    ranges: Mapping[str, float],
    keep: Collection[str] = (),
    dtype: str = "int8",
) -> QuantizeReport:
    """Write the graph to `out`, its weights beside it, with every candidate but those of `keep` in eight bits.

    `dtype` is "int8" (for TensorRT and OpenVINO), "uint8" (the same for ONNX Runtime) or "fp8" (E4M3, for TensorRT).
    `ranges` are magnitudes by tensor; what is larger saturates. The source may be float32 or lowered to half: scales
    have the type of what they scale. Raises `KeyError` for a range that is missing.
    """
    model = ir.load(source)
    names = [candidate.node for candidate, _ in candidate_nodes(model)]
    done = insert_pairs(model, ranges, keep=keep, dtype=dtype)
    data = out.with_name(f"{out.name}.data")
    ir.save(model, out, external_data=data.name)
    return QuantizeReport(
        quantized=done,
        kept=tuple(name for name in names if name not in done),
        size_bytes=sum(path.stat().st_size for path in (out, data) if path.exists()),
    )


def insert_pairs(model: ir.Model, ranges: Mapping[str, float], *, keep: Collection[str], dtype: str) -> tuple[str, ...]:
    """Quantize a graph in memory; the names of the nodes that were.

    ONNX Runtime needs a layout of its own. On x86 it multiplies fast only where activations are unsigned (with a zero
    point of 128 they are the same numbers), which TensorRT refuses. It takes a convolution to int8 only where the
    result is quantized as well, which costs accuracy on OpenVINO. A Gemm, or a convolution whose result is the
    graph's, it does not take at all: these are left alone.
    """
    chosen = [(c, node) for c, node in candidate_nodes(model) if c.node not in keep]
    fused = FORMATS[dtype].fused
    if fused:
        chosen = [(c, node) for c, node in chosen if c.kind != "Gemm" and not node.outputs[0].is_graph_output()]
    pairs = _Pairs(model.graph, ranges, FORMATS[dtype])
    for candidate, node in chosen:
        node.replace_input_with(0, pairs.activation(node.inputs[0]))
        node.replace_input_with(1, pairs.weight(node, candidate.axis))
    for candidate, node in chosen:
        if fused and candidate.kind == "Conv":
            pairs.replace(node.outputs[0])
    for name in {candidate.weight for candidate, _ in chosen}:
        if not model.graph.initializers[name].uses():
            del model.graph.initializers[name]
    return tuple(candidate.node for candidate, _ in chosen)


class _Pairs:
    """Adds quantizers and dequantizers to a graph, once for each tensor however many nodes read it."""

    def __init__(self, graph: ir.Graph, ranges: Mapping[str, float], form: Format) -> None:
        self._graph, self._ranges, self._form = graph, ranges, form
        self._restored: dict[str, ir.Value] = {}

    def activation(self, value: ir.Value | None) -> ir.Value:
        """The tensor as it is after eight bits."""
        assert value is not None
        name = str(value.name)
        if name not in self._restored:
            kind = value.dtype or ir.DataType.FLOAT
            number = self._form.activation
            scale = np.asarray(self._ranges[name] / self._form.largest).astype(kind.numpy())
            given = (
                self._constant(f"{name}.scale", scale if scale else np.ones_like(scale)),  # a tensor of zeros
                self._constant(f"{name}.zero", np.asarray(self._form.zero).astype(number.numpy())),
            )
            quantized = _give(ir.node("QuantizeLinear", [value, *given]), f"{name}.quantized", number, value.shape)
            restored = _give(ir.node("DequantizeLinear", [quantized, *given]), f"{name}.restored", kind, value.shape)
            nodes = [node for made in (quantized, restored) if (node := made.producer())]
            producer = value.producer()
            if producer is None:
                self._graph.insert_before(self._graph[0], nodes)
            else:
                self._graph.insert_after(producer, nodes)
            self._restored[name] = restored
        return self._restored[name]

    def replace(self, value: ir.Value) -> None:
        """Whatever reads the tensor reads it as it is after eight bits."""
        restored = self.activation(value)
        for user, index in tuple(value.uses()):
            if user.op_type != "QuantizeLinear":
                user.replace_input_with(index, restored)

    def weight(self, node: ir.Node, axis: int) -> ir.Value:
        """The node's weight as it is after eight bits, stored so."""
        value = node.inputs[1]
        assert value is not None
        assert value.const_value is not None
        name = f"{value.name}.{axis}"
        if name not in self._restored:
            scale = _channel_scales(value.const_value, axis, self._form.largest)
            given = (
                self._constant(f"{name}.quantized", _quantized(value.const_value, scale, axis, self._form)),
                self._constant(f"{name}.scale", scale),
                self._constant(f"{name}.zero", np.zeros(scale.shape, self._form.weight.numpy())),
            )
            made = ir.node("DequantizeLinear", given, {"axis": axis})
            self._restored[name] = _give(made, f"{name}.restored", value.const_value.dtype, value.shape)
            self._graph.insert_before(node, made)
        return self._restored[name]

    def _constant(self, name: str, numbers: NDArray[Any] | ir.TensorProtocol) -> ir.Value:
        tensor = ir.Tensor(numbers, name=name) if isinstance(numbers, np.ndarray) else numbers
        value = ir.Value(
            name=name, const_value=tensor, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype)
        )
        self._graph.register_initializer(value)
        return value


def _give(node: ir.Node, name: str, kind: ir.DataType, shape: ir.Shape | None) -> ir.Value:
    value = node.outputs[0]
    value.name, value.dtype, value.shape = name, kind, shape
    return value


def _channel_scales(weight: ir.TensorProtocol, axis: int, top: float) -> NDArray[Any]:
    """One for each output channel, in the weight's own type.  # [O]"""
    numbers = weight.numpy()
    others = tuple(other for other in range(numbers.ndim) if other != axis)
    amax = np.abs(numbers).max(axis=others).astype(np.float32)
    scale: NDArray[Any] = (amax / top).astype(numbers.dtype)
    scale[scale == 0] = 1  # a channel of zeros
    return scale


def _quantized(weight: ir.TensorProtocol, scale: NDArray[Any], axis: int, form: Format) -> ir.LazyTensor:
    """The weight in units of its scales, made when it is written: a model's weights are never in memory together."""

    def make() -> ir.TensorProtocol:
        wide = [scale.size if other == axis else 1 for other in range(len(weight.shape))]
        units = weight.numpy().astype(np.float32) / scale.astype(np.float32).reshape(wide)
        whole = np.rint(units) if form.weight.is_integer() else units
        return ir.Tensor(whole.clip(-form.largest, form.largest).astype(form.weight.numpy()))

    return ir.LazyTensor(make, dtype=form.weight, shape=ir.Shape(weight.shape.numpy()))
