"""Skip the exporter's pass for type promotion on graphs that it would leave as they are.

The pass interprets the complete graph again, which takes a fifth of a trace. It changes only operations whose operands have
different types, and our networks have few of these. This module knows one private function of torch's exporter; a version
of torch without it runs every pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from unittest.mock import patch

import torch
from torch import fx

_MODULE, _FUNCTION = "torch.onnx._internal.exporter._fx_passes", "insert_type_promotion_nodes"


@contextmanager
def only_where_types_differ() -> Iterator[None]:
    """Run the exporter's pass for type promotion only for graphs that mix types."""
    try:
        insert = getattr(import_module(_MODULE), _FUNCTION)
    except (ImportError, AttributeError):
        yield
        return

    def insert_if_mixed(graph_module: fx.GraphModule) -> None:
        if any(mixes_types(node) for node in graph_module.graph.nodes):
            insert(graph_module)

    with patch(f"{_MODULE}.{_FUNCTION}", insert_if_mixed):
        yield


# Operators that take tensors of several types as they are, or that state their result's type.
_TYPED = {
    torch.ops.aten.embedding.default,
    torch.ops.aten._to_copy.default,
    torch.ops.aten.expand.default,
    torch.ops.aten.index.Tensor,
    torch.ops.aten.scaled_dot_product_attention.default,
}


def mixes_types(node: fx.Node) -> bool:
    """Return True if the operation may promote an operand: its tensors have different types, or its result has another."""
    if node.op != "call_function" or node.target in _TYPED:
        return False
    operands = {dtype for operand in node.all_input_nodes if (dtype := _dtype(operand)) is not None}
    result = _dtype(node)
    if not operands or result is None:
        return False
    return len(operands) > 1 or result not in (*operands, torch.bool)


def _dtype(node: fx.Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, torch.Tensor) else None
