"""Find the nodes of a traced graph that can compute in eight bits: convolutions and matrix products with weights.

Each candidate has its block of the network and its cost, so that a search can choose. Products of two activations
(attention) are not candidates: measurements show no gain from them on ONNX Runtime or OpenVINO.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

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


def candidates(source: Path) -> tuple[Candidate, ...]:
    """Return all candidates of a graph, in the order of computation."""
    return tuple(candidate for candidate, _ in candidate_nodes(ir.load(source)))


def multiply_adds(source: Path, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the number of multiply-adds of each candidate in one call, by node.

    Args:
        sizes: the value of each symbolic dimension.

    Raises:
        ValueError: the sizes do not determine a shape.
    """
    return {c.node: _multiply_adds(c, node, sizes) for c, node in candidate_nodes(ir.load(source))}


def candidate_nodes(model: ir.Model) -> Iterator[tuple[Candidate, ir.Node]]:
    """Yield the candidates with their nodes."""
    for node in model.graph:
        axis = _channel_axis(node)
        if axis is None:
            continue
        reads, weight = node.inputs[:2]
        if reads is None or weight is None or not weight.is_initializer() or weight.dtype not in FLOATS:
            continue
        yield (
            Candidate(
                node=str(node.name),
                block=_block(node),
                kind=node.op_type,
                reads=str(reads.name),
                gives=str(node.outputs[0].name),
                weight=str(weight.name),
                axis=axis,
            ),
            node,
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
    prop = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    scopes: list[str] = ast.literal_eval(prop) if prop else []
    module = scopes[-2] if len(scopes) > 1 else str(node.name)  # the last scope is the operator
    match = re.match(r"(.*?\.\d+(?:\..*?\.\d+)?)(?:\.|$)", module)
    return match[1] if match else module


def _multiply_adds(candidate: Candidate, node: ir.Node, sizes: Mapping[str, int]) -> int:
    weight, output = node.inputs[1], node.outputs[0].shape
    assert weight is not None
    assert weight.shape is not None
    dims = output.evaluate(dict(sizes)) if output is not None else ()
    known = [dim for dim in dims if isinstance(dim, int)]
    if not dims or len(known) < len(dims):
        raise ValueError(f"cannot determine the shape of {candidate.gives}, {output}, from the sizes {dict(sizes)}.")
    shape = weight.shape.numpy()
    return math.prod(known) * math.prod(shape) // shape[candidate.axis]
