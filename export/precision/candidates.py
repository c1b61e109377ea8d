"""What in a traced graph can be computed in eight bits: convolutions and matrix products with weights.

Says where each belongs in the network and what it costs, so that a search can choose among them. Products of two
activations (attention) are not among them: neither ONNX Runtime nor OpenVINO gained from those by measurement.
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
    """All of a graph, in the order in which they are computed."""
    return tuple(candidate for candidate, _ in candidate_nodes(ir.load(source)))


def multiply_adds(source: Path, sizes: Mapping[str, int]) -> dict[str, int]:
    """How many multiply-adds each candidate takes for one call at these sizes of the symbols, by node.

    Raises `ValueError` where a shape does not follow from the sizes.
    """
    return {c.node: _multiply_adds(c, node, sizes) for c, node in candidate_nodes(ir.load(source))}


def candidate_nodes(model: ir.Model) -> Iterator[tuple[Candidate, ir.Node]]:
    """The candidates with their nodes."""
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
    """Which axis of the second input counts output channels; None for a node that is no candidate."""
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
    """From the scopes that torch's exporter notes: up to the second number in the module's name, else the first."""
    noted = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    scopes: list[str] = ast.literal_eval(noted) if noted else []
    module = scopes[-2] if len(scopes) > 1 else str(node.name)  # the last is the operator's
    found = re.match(r"(.*?\.\d+(?:\..*?\.\d+)?)(?:\.|$)", module)
    return found[1] if found else module


def _multiply_adds(candidate: Candidate, node: ir.Node, sizes: Mapping[str, int]) -> int:
    weight, given = node.inputs[1], node.outputs[0].shape
    assert weight is not None
    assert weight.shape is not None
    dims = given.evaluate(dict(sizes)) if given is not None else ()
    known = [dim for dim in dims if isinstance(dim, int)]
    if not dims or len(known) < len(dims):
        raise ValueError(f"the shape of {candidate.gives}, {given}, does not follow from the sizes {dict(sizes)}.")
    shape = weight.shape.numpy()
    return math.prod(known) * math.prod(shape) // shape[candidate.axis]
