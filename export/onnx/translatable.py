"""Rewrite a program of `torch.export` with operators that the ONNX exporter translates as they are.

For an operator that it cannot translate, the exporter traces the program again, which takes half of the time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

_aten = torch.ops.aten
_CASTS = (_aten.to.dtype, _aten.to.device, _aten.to.dtype_layout)
_FRESH = (_aten.conv2d.default, _aten.add.Tensor, _aten.div.Tensor)  # their outputs are never views


def make_translatable(program: GraphModule) -> None:
    """Replace casts, sums in place, repeats, differences and squares in a program. What it computes stays the same."""
    for rewrite in (_casts, _sums_in_place, _repeats, _differences, _squares):
        rewrite(program.graph)
    program.recompile()


def _casts(graph: Graph) -> None:
    """Replace `Tensor.to`, which the exporter knows only as the operator that it decomposes to."""
    for node in _calls(graph, *_CASTS):
        tensor, dtype = node.args[0], node.meta["val"].dtype
        replacement = tensor
        if tensor.meta["val"].dtype != dtype:
            with graph.inserting_before(node):
                replacement = graph.call_function(_aten._to_copy.default, (tensor,), {"dtype": dtype})
            replacement.meta = dict(node.meta)
        _replace(node, replacement)


def _sums_in_place(graph: Graph) -> None:
    """Replace the sums in place of a U-Net that adds a T2I-Adapter's features.

    Only sums into the output of an operator that never returns a view, so that nothing else changes.
    """
    for node in _calls(graph, _aten.add_.Tensor):
        target = node.args[0]
        if target.target not in _FRESH:
            continue
        with graph.inserting_before(node):
            total = graph.call_function(_aten.add.Tensor, node.args, node.kwargs)
        total.meta = dict(node.meta)
        node.replace_all_uses_with(total)
        target.replace_all_uses_with(total, delete_user_cb=lambda user, node=node: user > node)  # later uses
        graph.erase_node(node)


def _repeats(graph: Graph) -> None:
    """Replace `repeat_interleave` by a count that is a size: onnxscript 0.7 expands the wrong axis."""
    for node in _calls(graph, _aten.repeat_interleave.self_int):
        if len(node.args) != 3:
            continue
        tensor, count, axis = node.args
        sizes = [-1] * (tensor.meta["val"].ndim + 1)
        sizes[axis + 1] = count
        with graph.inserting_before(node):
            apart = _called(graph, _aten.unsqueeze.default, tensor, axis + 1)
            repeated = _called(graph, _aten.expand.default, apart, sizes)
            joined = _called(graph, _aten.flatten.using_ints, repeated, axis, axis + 1)
        _replace(node, joined)


def _differences(graph: Graph) -> None:
    """Replace a number minus a tensor, as Stable Video Diffusion blends."""
    for node in _calls(graph, _aten.rsub.Scalar):
        if len(node.args) != 2:
            continue
        with graph.inserting_before(node):
            negative = _called(graph, _aten.neg.default, node.args[0])
            difference = _called(graph, _aten.add.Scalar, negative, node.args[1])
        _replace(node, difference)


def _squares(graph: Graph) -> None:
    """Replace squares, as the standard deviations of Style Aligned have."""
    for node in _calls(graph, _aten.square.default):
        with graph.inserting_before(node):
            product = _called(graph, _aten.mul.Tensor, node.args[0], node.args[0])
        _replace(node, product)


def _calls(graph: Graph, *operators: Any) -> list[Any]:
    return [node for each in operators for node in graph.find_nodes(op="call_function", target=each)]


def _called(graph: Graph, operator: Any, *arguments: Any) -> Node:
    """Return a new node of the graph, with the shape of its result."""
    node = graph.call_function(operator, arguments)
    node.meta["val"] = operator(*torch.fx.node.map_arg(arguments, lambda each: each.meta["val"]))
    return node


def _replace(node: Node, replacement: Node) -> None:
    node.replace_all_uses_with(replacement)
    node.graph.erase_node(node)
