"""Measure the error of half precision: run one graph that computes in float32 and with rounded tensors.

Every tensor that the lowered graph stores in half precision is cast there and back, like the stores of a kernel that
sums in float32. Running the lowered graph on ONNX Runtime's CPU provider would hide overflow and loss: it has no bf16,
and it removes the casts between float32 kernels from an fp16 graph. The graph itself sums the differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..onnx.file import open_graph
from .activation_stats import Feed, Probe
from .half_op_types import FLOAT, Half, divide

TENSORS_PER_RUN = 64  # compared in one run: each may stay in memory until its twin is computed
_TWIN, _LOST, _ALL = "calotype.twin.", "calotype.lost.", "calotype.all."


def losses(
    source: Path, feeds: Sequence[Feed], half: Half, islands: Mapping[str, str], names: Sequence[str]
) -> dict[str, float]:
    """Return the relative L2 error of these float32 tensors over all feeds; infinite if a number is not finite."""
    results: dict[str, float] = {}
    for i in range(0, len(names), TENSORS_PER_RUN):
        some = names[i : i + TENSORS_PER_RUN]
        probe = Probe(model := open_graph(source), source.parent)
        twins = _add_twins(model, half, islands)
        pairs = {str(value.name): (value, twin) for value, twin in twins.items()}
        del model.graph.outputs[:]
        for name in reversed(some):  # ONNX Runtime computes the last output's part of the graph first
            _add_difference(probe, name, *pairs[name])
        runs = list(probe.run(feeds))
        for name in some:
            lost, total = (float(sum(np.float64(run[kind + name]) for run in runs)) for kind in (_LOST, _ALL))
            results[name] = _ratio(lost, total)
    return results


def _ratio(lost: float, total: float) -> float:
    if not np.isfinite(lost):
        return float("inf")
    return float(np.sqrt(lost / total)) if total > 0 else 0.0 if lost == 0 else float("inf")


def _add_difference(probe: Probe, name: str, value: ir.Value, twin: ir.Value) -> None:
    """Add two outputs: the sums of squares of the difference and of the tensor."""
    same = probe.op("Equal", value, twin)  # equal infinities have no difference
    lost = probe.op("Where", same, probe.constant(np.float32(0)), probe.op("Sub", value, twin))
    probe.output(_LOST + name, probe.op("ReduceSumSquare", lost, keepdims=0))
    probe.output(_ALL + name, probe.op("ReduceSumSquare", value, keepdims=0))


def _add_twins(model: ir.Model, half: Half, islands: Mapping[str, str]) -> dict[ir.Value, ir.Value]:
    """Add a twin of every node, which reads and writes rounded tensors. Return every computed tensor with its twin."""
    division, tape = divide(model, half, islands), ir.tape.Tape()
    stored: dict[ir.Value, ir.Value] = {}  # tensor -> twin, as the lowered graph stores it
    halves: dict[ir.Value, ir.Value] = {}  # tensor -> twin, as a half-precision node reads it

    def rounded(value: ir.Value) -> ir.Value:
        return tape.op("Cast", [tape.op("Cast", [value], {"to": half.dtype.value})], {"to": FLOAT.value})

    for node in model.graph:
        slots = division.lowered.get(node)
        inputs: list[ir.Value | None] = [value and stored.get(value, value) for value in node.inputs]
        for i in slots.inputs if slots else ():
            value = node.inputs[i]
            assert value is not None
            if value not in halves:
                halves[value] = rounded(stored.get(value, value))
            inputs[i] = halves[value]
        if not slots and (inputs == list(node.inputs) or node.op_type in ("Shape", "Size")):
            stored |= {value: value for value in node.outputs}
            continue
        outputs = [ir.val(v.name and f"{_TWIN}{v.name}", shape=v.shape, type=v.type) for v in node.outputs]
        tape.op_multi_out(node.op_type, inputs, node.attributes, domain=node.domain, outputs=outputs)
        for i, (value, twin) in enumerate(zip(node.outputs, outputs, strict=True)):
            stored[value] = twin
            if slots and i in slots.outputs:
                stored[value] = halves[value] = rounded(twin)
    model.graph.extend(tape.nodes)
    return stored
