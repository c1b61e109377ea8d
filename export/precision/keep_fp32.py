"""Find the nodes of a network that must stay in float32, from its graph and from real inputs, before lowering.

There are three kinds: nodes whose floats are angles or sizes (timesteps up to 999, indices); nodes with values near or
beyond the type's range in a recorded run; and, if the rest still loses too much, the nodes where the loss rises most.
Each node gets a reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from calotype.errors import InputError

from ..onnx.file import label, open_graph, tensors
from .activation_stats import Feed, observe
from .half_op_types import FLOAT, constant_islands, half_of
from .rounding_error import losses

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


def find_islands(source: Path, feeds: Sequence[Feed], *, precision: str) -> dict[str, str]:
    """Return the nodes of the graph at `source` to keep in float32 in "fp16" or "bf16", each with its reason.

    Args:
        feeds: real inputs of the network, by name.

    Raises:
        InputError: there are no feeds.
    """
    search = _Search(source, precision)
    if not feeds:
        message = "cannot find the islands of half precision without inputs; pass at least one feed."
        raise InputError(message, argument="feeds")
    islands = search.paths() | constant_islands(search.model, search.half)
    islands = search.overflows(feeds) | islands
    return islands | search.losses(feeds, islands)


class _Search:
    """Searches one graph. Each method returns nodes with their reasons."""

    def __init__(self, source: Path, precision: str) -> None:
        self.half = half_of(precision)
        self._source, self.model = source, open_graph(source)
        self._floats = [node for node in self.model.graph if _is_float(node)]

    def paths(self) -> dict[str, str]:
        """Find the sources of angles and sizes (bf16 has no 257, fp16 no 2,049), and norms that sum in half."""
        islands: dict[str, str] = {}
        for node in self.model.graph:
            if node.op_type in ("Sin", "Cos"):
                islands |= dict.fromkeys(_reached([node]), "computes an angle of a sine or cosine")
                islands |= dict.fromkeys(_reached([*node.successors()], forward=True), "only moves sines and cosines")
            elif node.attributes.get_int("stash_type", _NORMS.get(node.op_type, 1)) != 1:
                islands[label(node)] = "a norm that would sum in half precision"
            elif node.op_type == "Cast" and _is_float(node) and node.outputs[0].dtype in _INTEGERS:
                islands |= dict.fromkeys(_reached([node]), "computes an integer: a size or an index")
        return islands

    def overflows(self, feeds: Sequence[Feed]) -> dict[str, str]:
        """Find the nodes that read or write a tensor with values near the end of the type's range."""
        seen = observe(self._source, feeds)
        islands: dict[str, str] = {}
        for node in self._floats:
            names = [str(v.name) for v in (*node.inputs, *node.outputs) if v is not None and v.name in seen]
            endless = [n for n in names if not seen[n].finite]
            largest = max(names, key=lambda n: seen[n].amax, default=None)
            if endless:
                islands[label(node)] = f"{endless[0]} is not finite in float32 either"
            elif largest is not None and (amax := seen[largest].amax) > MARGIN * self.half.largest:
                limit = f"{MARGIN:.0%} of {self.half.name}'s {self.half.largest:.5g}"
                islands[label(node)] = f"{largest} reaches {amax:.4g}, above {limit}"
        return islands

    def losses(self, feeds: Sequence[Feed], known: Mapping[str, str]) -> dict[str, str]:
        """Find the nodes that lose most, until the loss is within the budget or the rounds are used up."""
        more: dict[str, str] = {}
        each = [self._loss(known, feed) for feed in feeds]
        loss, feed = max(each), feeds[each.index(max(each))]  # search only the worst feed: a search takes many runs
        for _ in range(ROUNDS):
            if loss <= BUDGET[self.half.name]:
                break
            worst = self._worst(feed, {**known, **more})
            remaining = self._loss({**known, **more, **worst}, feed)
            if not worst or remaining >= loss:
                break
            more, loss = {**worst, **more}, remaining
        return more

    def _loss(self, islands: Mapping[str, str], feed: Feed) -> float:
        """Return the largest loss of an output."""
        outputs = [str(v.name) for v in self.model.graph.outputs if v.dtype == FLOAT and v.producer() is not None]
        return max(losses(self._source, [feed], self.half, islands, outputs).values(), default=0.0)

    def _worst(self, feed: Feed, islands: Mapping[str, str]) -> dict[str, str]:
        """Return the nodes where the loss rises most, and their predecessors: rounding between them costs as well."""
        names = [str(v.name) for v in tensors(self.model) if v.dtype == FLOAT and v.producer() is not None]
        lost = losses(self._source, [feed], self.half, islands, names)

        def after(node: ir.Node) -> float:
            return max((lost[str(v.name)] for v in node.outputs if v.name in lost), default=0.0)

        def rise(node: ir.Node) -> float:
            before = max((lost.get(str(v.name), 0.0) for v in node.inputs if v is not None), default=0.0)
            return after(node) - before if after(node) != before else 0.0  # both may be infinite

        worst: dict[str, str] = {}
        for node in sorted(self._floats, key=rise, reverse=True)[:WORST]:
            if rise(node) > 0:
                reason = f"the loss rises to {after(node):.2g} at {label(node)}"
                worst |= {label(n): reason for n in (node, *filter(_is_float, node.predecessors()))}
        return {name: reason for name, reason in worst.items() if name not in islands}


def _reached(queue: list[ir.Node], *, forward: bool = False) -> list[str]:
    """Return the float nodes that these depend on, up to the first layer; forward, those that only move them."""
    reached: dict[ir.Node, None] = {}
    while queue:
        at = queue.pop()
        passes = at.op_type in _MOVES if forward else at.op_type not in _NETWORK
        if passes and at not in reached and _is_float(at):
            reached[at] = None
            queue += at.successors() if forward else at.predecessors()
    return [label(node) for node in reached]


def _is_float(node: ir.Node) -> bool:
    return any(v is not None and v.dtype == FLOAT for v in (*node.inputs, *node.outputs)) and node.op_type != "Shape"
