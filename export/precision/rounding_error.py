"""Measure the error of half precision: run one graph that computes in float32 and with rounded tensors.

Every tensor that the lowered graph stores in half precision is cast there and back, like the stores of a kernel that
sums in float32. Running the lowered graph on ONNX Runtime's CPU provider would hide overflow and loss: it has no bf16,
and it removes the casts between float32 kernels from an fp16 graph. The graph itself sums the differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..onnx.file import open_graph
from .activation_stats import open_session
from .half_op_types import FLOAT, Division, Half, divide

Feed = Mapping[str, NDArray[Any]]
TENSORS_PER_RUN = 64  # compared in one run: each may stay in memory until its twin is computed


def losses(
    source: Path, feeds: Sequence[Feed], half: Half, islands: Mapping[str, str], names: Sequence[str]
) -> dict[str, float]:
    """Return the relative L2 error of these float32 tensors over all feeds; infinite if a number is not finite."""
    results: dict[str, float] = {}
    for i in range(0, len(names), TENSORS_PER_RUN):
        results |= _losses(source, feeds, half, islands, names[i : i + TENSORS_PER_RUN])
    return results


def _losses(
    source: Path, feeds: Sequence[Feed], half: Half, islands: Mapping[str, str], names: Sequence[str]
) -> dict[str, float]:
    model = open_graph(source)
    twins = _Twins(model, divide(model, half, islands)).run()
    pairs = {str(v.name): (v, twin) for v, twin in twins.items()}
    del model.graph.outputs[:]
    for name in reversed(names):  # ONNX Runtime computes the last output's part of the graph first
        _difference(model.graph, name, *pairs[name])
    session = open_session(model, source.parent)
    outputs = [str(v.name) for v in model.graph.outputs]
    sums = np.array([session.run(outputs, dict(feed)) for feed in feeds], dtype=np.float64).sum(axis=0)
    squares = dict(zip(outputs, sums, strict=True))
    return {name: _ratio(squares[_LOST + name], squares[_ALL + name]) for name in names}


def _ratio(lost: float, total: float) -> float:
    if not np.isfinite(lost):
        return float("inf")
    return float(np.sqrt(lost / total)) if total > 0 else 0.0 if lost == 0 else float("inf")


class _Twins:
    """Adds a twin of every node to the graph; the twins read and write rounded tensors."""

    def __init__(self, model: ir.Model, division: Division) -> None:
        self._graph, self._division = model.graph, division
        self._nodes: list[ir.Node] = []
        self._stored: dict[ir.Value, ir.Value] = {}  # tensor -> twin, as the lowered graph stores it
        self._half: dict[ir.Value, ir.Value] = {}  # tensor -> twin, as a half-precision node reads it

    def run(self) -> Mapping[ir.Value, ir.Value]:
        """Return every computed tensor with its twin."""
        for node in list(self._graph):
            self._double(node)
        self._graph.extend(self._nodes)
        return self._stored

    def _double(self, node: ir.Node) -> None:
        slots, lowered = self._division.slots[node], node in self._division.lowered
        inputs = [
            None if v is None else self._read(v) if lowered and i in slots.inputs else self._stored.get(v, v)
            for i, v in enumerate(node.inputs)
        ]
        same = inputs == list(node.inputs) or node.op_type in ("Shape", "Size")
        if same and not lowered:
            self._stored |= {v: v for v in node.outputs}
            return
        twin = ir.node(node.op_type, inputs, node.attributes, domain=node.domain, num_outputs=len(node.outputs))
        self._nodes.append(twin)
        for i, (value, other) in enumerate(zip(node.outputs, twin.outputs, strict=True)):
            other.name = value.name and f"{_TWIN}{value.name}"
            other.type, other.shape = value.type, value.shape
            half = lowered and i in slots.outputs
            self._stored[value] = self._rounded(other) if half else other
            if half:
                self._half[value] = self._stored[value]

    def _read(self, value: ir.Value) -> ir.Value:
        if value not in self._half:
            self._half[value] = self._rounded(self._stored.get(value, value))
        return self._half[value]

    def _rounded(self, value: ir.Value) -> ir.Value:
        there = ir.node("Cast", [value], {"to": self._division.half.dtype.value})
        back = ir.node("Cast", there.outputs, {"to": FLOAT.value})
        self._nodes += [there, back]
        return back.outputs[0]


def _difference(graph: ir.Graph, name: str, value: ir.Value, twin: ir.Value) -> None:
    """Add two outputs: the sums of squares of the difference and of the tensor."""
    nodes: list[ir.Node] = []

    def add(op: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        nodes.append(ir.node(op, inputs, attributes))
        return nodes[-1].outputs[0]

    same = add("Equal", value, twin)  # equal infinities have no difference
    zero = add("Constant", value=ir.tensor(np.float32(0)))
    lost = add("ReduceSumSquare", add("Where", same, zero, add("Sub", value, twin)), keepdims=0)
    total = add("ReduceSumSquare", value, keepdims=0)
    lost.name, total.name = _LOST + name, _ALL + name
    lost.dtype = total.dtype = FLOAT
    graph.extend(nodes)
    graph.outputs.extend([lost, total])


_TWIN, _LOST, _ALL = "calotype.twin.", "calotype.lost.", "calotype.all."
