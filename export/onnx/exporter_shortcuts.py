"""Shortcuts through torch's exporter: the graphs stay the same, and a U-Net is traced in half of the time.

This module knows three private names: the pass of torch's exporter that promotes types, the test of onnxscript's
optimizer whether a rule applies, and onnxscript's class of translations. With a version that lacks them, the exporter
does all of its work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import onnx_ir as ir
import torch
from torch import fx


@contextmanager
def exporter_shortcuts() -> Iterator[None]:
    """Leave out work of the exporter that changes nothing."""
    with ExitStack() as patches:
        try:
            from onnxscript._internal.values import TracedOnnxFunction
            from onnxscript.rewriter._rewrite_rule import RewriteRule
            from torch.onnx._internal.exporter import _fx_passes

            promote = _promotes_if_mixed(_fx_passes.insert_type_promotion_nodes)
            patches.enter_context(patch.object(_fx_passes, "insert_type_promotion_nodes", promote))
            patches.enter_context(patch.object(RewriteRule, "try_rewrite", _at_its_root(RewriteRule.try_rewrite)))
            patches.enter_context(patch.object(TracedOnnxFunction, "function_ir", property(_only_the_domain)))
        except (ImportError, AttributeError):  # private names, which a version may not have
            pass
        yield


def _only_the_domain(translation: Any) -> SimpleNamespace:
    """Return what the exporter reads of each translation that it knows: it would parse the source of five hundred."""
    return SimpleNamespace(domain=translation.opset.domain)


def _promotes_if_mixed(insert: Callable[[fx.GraphModule], None]) -> Callable[[fx.GraphModule], None]:
    """Skip the pass for graphs without mixed types: it interprets the complete graph again."""

    def insert_if_mixed(graph_module: fx.GraphModule) -> None:
        if any(mixes_types(node) for node in graph_module.graph.nodes):
            insert(graph_module)

    return insert_if_mixed


# Operators that take tensors of several types as they are, or that state the type of their result.
_TYPED = {
    torch.ops.aten.embedding.default,
    torch.ops.aten._to_copy.default,
    torch.ops.aten.argmax.default,
    torch.ops.aten.expand.default,
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_select.default,
    torch.ops.aten.scaled_dot_product_attention.default,
}


def mixes_types(node: fx.Node) -> bool:
    """Return True if the operation may promote an operand: its tensors have several types, or its result another."""
    if node.op != "call_function" or node.target in _TYPED:
        return False
    values = node.args[1:] if node.target is torch.ops.aten.where.self else node.all_input_nodes  # not the condition
    operands = {dtype for value in values if isinstance(value, fx.Node) and (dtype := _dtype(value)) is not None}
    result = _dtype(node)
    if not operands or result is None:
        return False
    return len(operands) > 1 or result not in (*operands, torch.bool)


def _dtype(node: fx.Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, torch.Tensor) else None


def _at_its_root(try_rewrite: Callable[..., Any]) -> Callable[..., Any]:
    """Try a rule only at operations of the type at which its pattern ends.

    The optimizer tries every rule at every node, and one rule lists all nodes of the graph at each try.
    """

    def tried(rule: Any, model: ir.Model, graph: Any, node: ir.Node, **options: Any) -> Any:
        root = rule._target_pattern.output_nodes[0].op_identifier()  # None: it may end at any type
        if root is not None and root != node.op_identifier():
            return None
        return try_rewrite(rule, model, graph, node, **options)

    return tried
