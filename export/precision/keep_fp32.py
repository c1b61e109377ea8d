"""Find the nodes of a network that must stay in float32, from its graph and from real inputs, before lowering.

There are three kinds: nodes whose floats are angles or sizes (timesteps up to 999, indices); nodes with values near or
beyond the type's range in a recorded run; and, if the rest still loses too much, the nodes where the loss rises most.
Each node gets a reason.
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

MARGIN = 0.5  # share of the type's range: other inputs may have larger values than the recorded ones
# Largest relative L2 error of an output: about ten times what rounding every tensor costs a healthy network.
BUDGET = {"fp16": 5e-3, "bf16": 4e-2}
ROUNDS, WORST = 4, 4  # searches for nodes where the loss rises, and nodes kept by each search

# Operators that only move or repeat numbers.
_MOVES = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile"}
)
_MOVES |= {"Transpose", "Unsqueeze"}
# Norms sum squares in float32 if `stash_type` is 1, the default of those that have the attribute.
_NORMS = {"GroupNormalization": 1, "LayerNormalization": 1, "InstanceNormalization": 0, "LpNormalization": 0}
_INTEGERS = frozenset({ir.DataType.INT32, ir.DataType.INT64})
_NETWORK = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def find_islands(source: Path, feeds: Feeds, *, precision: str) -> dict[str, str]:
    """Return the nodes of the graph at `source` to keep in float32 in "fp16" or "bf16", each with its reason.

    Args:
        feeds: real inputs of the network, by name.

    Raises:
        InputError: there are no feeds.
    """
    half = half_of(precision)
    if not feeds:
        raise InputError("cannot find the islands of half precision without inputs; pass at least one feed.")
    model = open_graph(source)
    islands = _paths(model) | constant_islands(model, half)
    islands = _overflows(source, feeds, model, half) | islands
    return islands | _lossy(source, feeds, model, half, islands)


def _paths(model: ir.Model) -> dict[str, str]:
    """Return the sources of angles and sizes (bf16 has no 257, fp16 no 2,049), and norms that sum in half."""
    islands: dict[str, str] = {}
    for node in model.graph:
        if node.op_type in ("Sin", "Cos"):
            islands |= dict.fromkeys(map(label, _upstream(node)), "computes an angle of a sine or cosine")
            islands |= dict.fromkeys(map(label, _moved(node)), "only moves sines and cosines")
        elif node.attributes.get_int("stash_type", _NORMS.get(node.op_type, 1)) != 1:
            islands[label(node)] = "a norm that would sum in half precision"
        elif node.op_type == "Cast" and _is_float(node) and node.outputs[0].dtype in _INTEGERS:
            islands |= dict.fromkeys(map(label, _upstream(node)), "computes an integer: a size or an index")
    return islands


def _upstream(node: ir.Node) -> list[ir.Node]:
    """Return the node and all float nodes that it depends on, up to the first layer with weights."""
    visited: dict[ir.Node, None] = {}
    queue = [node]
    while queue:
        at = queue.pop()
        if at not in visited and at.op_type not in _NETWORK and _is_float(at):
            visited[at] = None
            queue += at.predecessors()
    return list(visited)


def _moved(node: ir.Node) -> list[ir.Node]:
    visited: dict[ir.Node, None] = {}
    queue = [*node.successors()]
    while queue:
        at = queue.pop()
        if at not in visited and at.op_type in _MOVES and _is_float(at):
            visited[at] = None
            queue += at.successors()
    return list(visited)


def _overflows(source: Path, feeds: Feeds, model: ir.Model, half: Half) -> dict[str, str]:
    """Return the nodes that read or write a tensor with values near the end of the type's range."""
    seen = observe(source, feeds, None)
    islands: dict[str, str] = {}
    for node in filter(_is_float, model.graph):
        names = [str(v.name) for v in (*node.inputs, *node.outputs) if v is not None and v.name in seen]
        endless = [n for n in names if not seen[n].finite]
        largest = max(names, key=lambda n: seen[n].amax, default=None)
        if endless:
            islands[label(node)] = f"{endless[0]} is not finite in float32 either"
        elif largest is not None and seen[largest].amax > MARGIN * half.largest:
            islands[label(node)] = (
                f"{largest} reaches {seen[largest].amax:.4g}, above {MARGIN:.0%} of {half.name}'s {half.largest:.5g}"
            )
    return islands


def _lossy(source: Path, feeds: Feeds, model: ir.Model, half: Half, known: Mapping[str, str]) -> dict[str, str]:
    """Return the nodes that lose most, until the loss is within the budget or the rounds are used up."""
    outputs = [str(v.name) for v in model.graph.outputs if v.dtype == FLOAT and v.producer() is not None]

    def loss_of(islands: Mapping[str, str], feeds: Feeds) -> float:
        return max(losses(source, feeds, half, islands, outputs).values(), default=0.0)

    more: dict[str, str] = {}
    each = [loss_of(known, [feed]) for feed in feeds]
    loss, feed = max(each), feeds[each.index(max(each))]  # search only the worst feed: a search takes many runs
    for _ in range(ROUNDS):
        if loss <= BUDGET[half.name]:
            break
        worst = _worst(source, feed, model, half, {**known, **more})
        remaining = loss_of({**known, **more, **worst}, [feed])
        if not worst or remaining >= loss:
            break
        more, loss = {**worst, **more}, remaining
    return more


def _worst(
    source: Path, feed: Mapping[str, NDArray[Any]], model: ir.Model, half: Half, islands: Mapping[str, str]
) -> dict[str, str]:
    """Return the nodes where the loss rises most, and their predecessors: rounding between them costs as well."""
    names = [str(v.name) for v in tensors(model) if v.dtype == FLOAT and v.producer() is not None]
    lost = losses(source, [feed], half, islands, names)

    def rise(node: ir.Node) -> float:
        after = max((lost[str(v.name)] for v in node.outputs if v.name in lost), default=0.0)
        before = max((lost.get(str(v.name), 0.0) for v in node.inputs if v is not None), default=0.0)
        return after - before if after != before else 0.0  # both may be infinite

    worst: dict[str, str] = {}
    for node in sorted(filter(_is_float, model.graph), key=rise, reverse=True)[:WORST]:
        if rise(node) > 0:
            reached = max(lost[str(v.name)] for v in node.outputs if v.name in lost)
            reason = f"the loss rises to {reached:.2g} at {label(node)}"
            worst |= {label(n): reason for n in (node, *filter(_is_float, node.predecessors()))}
    return {name: reason for name, reason in worst.items() if name not in islands}


def _is_float(node: ir.Node) -> bool:
    return any(v is not None and v.dtype == FLOAT for v in (*node.inputs, *node.outputs)) and node.op_type != "Shape"
