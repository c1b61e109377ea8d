"""Find the nodes of a traced graph that can compute in eight bits: convolutions and matrix products with weights.

Each candidate has its block of the network, so that a search can choose. Products of two activations (attention) are
not candidates: measurements show no gain from them on ONNX Runtime or OpenVINO.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from ..onnx.file import SCOPES
from .activation_stats import FLOATS


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One node that may be quantized, with the names of its tensors."""

    node: str
    block: str  # the part of the network that it belongs to, such as "model.down_blocks.0.resnets.1"
    kind: str  # Conv, MatMul or Gemm
    reads: str  # the activation
    gives: str
    weight: str
    axis: int  # of the weight's output channels
    operation: ir.Node = field(repr=False)


def candidates(source: Path) -> tuple[Candidate, ...]:
    """Return all candidates of a graph, in the order of computation."""
    return tuple(candidates_in(ir.load(source)))


def candidates_in(model: ir.Model) -> Iterator[Candidate]:
    """Yield the candidates of a graph in memory."""
    for node in model.graph:
        axis = _channel_axis(node)
        if axis is None:
            continue
        reads, weight = node.inputs[:2]
        if reads is None or weight is None or not weight.is_initializer() or weight.dtype not in FLOATS:
            continue
        yield Candidate(
            node=str(node.name),
            block=_block(node),
            kind=node.op_type,
            reads=str(reads.name),
            gives=str(node.outputs[0].name),
            weight=str(weight.name),
            axis=axis,
            operation=node,
        )


def _channel_axis(node: ir.Node) -> int | None:
    """Return the axis of output channels in the second input, or None if the node is not a candidate."""
    match node.op_type:
        case "Conv":
            return 0
        case "Gemm":
            return 0 if node.attributes.get_int("transB", 0) else 1
        case "MatMul":
            weight = node.inputs[1]
            return 1 if weight is not None and weight.shape is not None and len(weight.shape) == 2 else None
    return None


def _block(node: ir.Node) -> str:
    """Return the module's name up to its second number (else its first), from the scopes of torch's exporter."""
    prop = node.metadata_props.get(SCOPES)
    scopes: list[str] = ast.literal_eval(prop) if prop else []
    module = scopes[-2] if len(scopes) > 1 else str(node.name)  # the last scope is the operator
    match = re.match(r"(.*?\.\d+(?:\..*?\.\d+)?)(?:\.|$)", module)
    return match[1] if match else module
