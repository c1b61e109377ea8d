"""Where must a network stay in float32? Found before it is lowered, from its graph and from real inputs.

Three kinds of node: those whose floats are angles or sizes (time steps up to 999, indices), whatever the inputs; those
that a recorded run saw near or beyond the end of the type's range; and, where the rest together still loses too much,
those at which the loss rises most. Each is told with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from calotype.errors import InputError

from ..onnx.file import label, open_graph, tensors
from .activation_stats import observe
from .half_op_types import FLOAT, Half, constant_islands, half_of
from .rounding_error import losses

Feeds = Sequence[Mapping[str, NDArray[Any]]]

MARGIN = 0.5  # of the type's range: the recorded inputs are not all that there will be
# Relative L2 of an output that is too much: some ten times what rounding every tensor costs a healthy network.
BUDGET = {"fp16": 5e-3, "bf16": 4e-2}
ROUNDS, WORST = 4, 4  # of looking for where the loss rises, and places kept in each

# Operators that only move or repeat numbers.
_MOVES = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile"}
)
_MOVES |= {"Transpose", "Unsqueeze"}
# Norms sum squares: in float32 whatever their tensors are where `stash_type` is 1, its default for those that have it.
_NORMS = {"GroupNormalization": 1, "LayerNormalization": 1, "InstanceNormalization": 0, "LpNormalization": 0}
_WHOLE = frozenset({ir.DataType.INT32, ir.DataType.INT64})
_NETWORK = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def find_islands(source: Path, feeds: Feeds, *, precision: str) -> dict[str, str]:
    """The nodes of the graph at `source` to keep in float32 in "fp16" or "bf16", each with its reason.

    `feeds` are real inputs of the network, by name. Raises `InputError` where there are none.
    """
    half = half_of(precision)
    if not feeds:
        raise InputError("the islands of half precision are found on real inputs: give one set at least.")
    model = open_graph(source)
    found = _paths(model) | constant_islands(model, half)
    found = _overflows(source, feeds, model, half) | found
    return found | _lossy(source, feeds, model, half, found)


def _paths(model: ir.Model) -> dict[str, str]:
    """What angles and sizes come from (bf16 has no 257, fp16 no 2,049), and norms that sum in half."""
    found: dict[str, str] = {}
    for node in model.graph:
        if node.op_type in ("Sin", "Cos"):
            found |= dict.fromkeys(map(label, _upstream(node)), "an angle: on the way to a sine or cosine")
            found |= dict.fromkeys(map(label, _moved(node)), "moves sines and cosines to where arithmetic begins")
        elif node.attributes.get_int("stash_type", _NORMS.get(node.op_type, 1)) != 1:
            found[label(node)] = "a norm that would sum in half precision"
        elif node.op_type == "Cast" and _is_float(node) and node.outputs[0].dtype in _WHOLE:
            found |= dict.fromkeys(map(label, _upstream(node)), "becomes whole numbers: a size or an index")
    return found


def _upstream(node: ir.Node) -> list[ir.Node]:
    """The node, and all that its floats are made from, up to where a network begins."""
    found: dict[ir.Node, None] = {}
    waiting = [node]
    while waiting:
        at = waiting.pop()
        if at not in found and at.op_type not in _NETWORK and _is_float(at):
            found[at] = None
            waiting += at.predecessors()
    return list(found)


def _moved(node: ir.Node) -> list[ir.Node]:
    found: dict[ir.Node, None] = {}
    waiting = [*node.successors()]
    while waiting:
        at = waiting.pop()
        if at not in found and at.op_type in _MOVES and _is_float(at):
            found[at] = None
            waiting += at.successors()
    return list(found)


def _overflows(source: Path, feeds: Feeds, model: ir.Model, half: Half) -> dict[str, str]:
    """Nodes that read or write a tensor which came near the end of the type's range, with the largest of those."""
    seen = observe(source, feeds, None)
    found: dict[str, str] = {}
    for node in filter(_is_float, model.graph):
        names = [str(v.name) for v in (*node.inputs, *node.outputs) if v is not None and v.name in seen]
        endless = [n for n in names if not seen[n].finite]
        largest = max(names, key=lambda n: seen[n].amax, default=None)
        if endless:
            found[label(node)] = f"{endless[0]} is not finite in float32 either"
        elif largest is not None and seen[largest].amax > MARGIN * half.largest:
            found[label(node)] = (
                f"{largest} reaches {seen[largest].amax:.4g}, past {MARGIN:.0%} of {half.name}'s {half.largest:.5g}"
            )
    return found


def _lossy(source: Path, feeds: Feeds, model: ir.Model, half: Half, found: Mapping[str, str]) -> dict[str, str]:
    """The places where most is lost, as many as it takes to come within the budget, or as the rounds allow."""
    outputs = [str(v.name) for v in model.graph.outputs if v.dtype == FLOAT and v.producer() is not None]

    def lost_of(islands: Mapping[str, str], feeds: Feeds) -> float:
        return max(losses(source, feeds, half, islands, outputs).values(), default=0.0)

    more: dict[str, str] = {}
    each = [lost_of(found, [feed]) for feed in feeds]
    lost, feed = max(each), feeds[each.index(max(each))]  # looked into where it is worst: that takes many runs
    for _ in range(ROUNDS):
        if lost <= BUDGET[half.name]:
            break
        worst = _worst(source, feed, model, half, {**found, **more})
        left = lost_of({**found, **more, **worst}, [feed])
        if not worst or left >= lost:
            break
        more, lost = {**worst, **more}, left
    return more


def _worst(
    source: Path, feed: Mapping[str, NDArray[Any]], model: ir.Model, half: Half, islands: Mapping[str, str]
) -> dict[str, str]:
    """The nodes at which the loss rises most, with those that store what they read: rounding between them costs."""
    names = [str(v.name) for v in tensors(model) if v.dtype == FLOAT and v.producer() is not None]
    lost = losses(source, [feed], half, islands, names)

    def rise(node: ir.Node) -> float:
        after = max((lost[str(v.name)] for v in node.outputs if v.name in lost), default=0.0)
        before = max((lost.get(str(v.name), 0.0) for v in node.inputs if v is not None), default=0.0)
        return after - before if after != before else 0.0  # both may be infinite

    found: dict[str, str] = {}
    for node in sorted(filter(_is_float, model.graph), key=rise, reverse=True)[:WORST]:
        if rise(node) > 0:
            reached = max(lost[str(v.name)] for v in node.outputs if v.name in lost)
            reason = f"the loss rises to {reached:.2g} at {label(node)}"
            found |= {label(n): reason for n in (node, *filter(_is_float, node.predecessors()))}
    return {name: reason for name, reason in found.items() if name not in islands}


def _is_float(node: ir.Node) -> bool:
    return any(v is not None and v.dtype == FLOAT for v in (*node.inputs, *node.outputs)) and node.op_type != "Shape"
