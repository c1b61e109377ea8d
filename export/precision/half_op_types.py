"""Find the nodes of a float32 graph that may compute in half precision, and which inputs and outputs change type.

The rules come from ONNX's own operator schemas, so an operator that is new here is handled correctly or stays in
float32. This module looks only at types; `keep_fp32` finds nodes that must stay in float32 because of their values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from calotype.errors import InputError, SourceError

from ..onnx.file import label

FLOAT = ir.DataType.FLOAT


@dataclass(frozen=True, kw_only=True)
class Half:
    """A half-precision type. `largest` and `smallest` are its largest and smallest positive numbers."""

    name: str
    dtype: ir.DataType
    largest: float
    smallest: float
    opset: int  # the first opset whose Conv, Sin, Resize, ... accept the type

    def convert(self, tensor: ir.TensorProtocol) -> ir.Tensor[Any]:
        """Return the tensor in this type."""
        return ir.Tensor(tensor.numpy().astype(self.dtype.numpy()), dtype=self.dtype)

    def convert_later(self, tensor: ir.TensorProtocol, name: str) -> ir.LazyTensor:
        """Return the tensor in this type, converted when it is written: memory never holds all weights."""
        return ir.LazyTensor(lambda: self.convert(tensor), self.dtype, ir.Shape(tensor.shape.numpy()), name=name)


PRECISIONS = {
    "fp16": Half(name="fp16", dtype=ir.DataType.FLOAT16, largest=65504.0, smallest=2.0**-24, opset=1),
    # Opset 22 differs from 21 only in this: thirty operators that accept fp16 also accept bf16.
    "bf16": Half(name="bf16", dtype=ir.DataType.BFLOAT16, largest=255 * 2.0**120, smallest=2.0**-133, opset=22),
}

# Operators whose result does not depend on their input's precision: they read the tensor as it is.
_ANY = {("Shape", 0), ("Size", 0), ("Cast", 0), ("CastLike", 0)}
# Float32 in every precision: they determine sizes, or (LayerNormalization) `stash_type` sets the type.
_FIXED_INPUTS = {("Resize", 1), ("Resize", 2)}
_FIXED_OUTPUTS = {("LayerNormalization", 1), ("LayerNormalization", 2)}
_TYPE_ATTRIBUTES = {"dtype", "output_datatype"}  # set the output type: RandomNormal, EyeLike, HannWindow


@dataclass(frozen=True, kw_only=True)
class Slots:
    """The positions of one node's tensors that change their type with the node's precision."""

    inputs: frozenset[int]
    outputs: frozenset[int]


@dataclass(frozen=True, kw_only=True)
class Division:
    """Partition of a graph: the nodes that compute in half precision, and why others with floats do not."""

    half: Half
    lowered: Mapping[ir.Node, Slots]
    islands: Mapping[str, str]  # node -> reason


def half_of(precision: str) -> Half:
    """Return the type with this name. Raise `InputError` if it is unknown."""
    if precision not in PRECISIONS:
        expected = f"one of {', '.join(PRECISIONS)}"
        message = f"unknown half precision {precision!r}; expected {expected}."
        raise InputError(message, argument="precision", got=precision, expected=expected)
    return PRECISIONS[precision]


def raise_opset(model: ir.Model, half: Half) -> None:
    """Raise the graph's opset to the first one whose operators accept the type.

    Raises:
        SourceError: the graph is so old that this could change its meaning.
    """
    opset = model.opset_imports[""]
    if opset < half.opset - 1:
        raise SourceError(
            f"cannot lower the graph to {half.name}: got opset {opset}, expected opset {half.opset - 1} or later."
        )
    model.opset_imports[""] = max(opset, half.opset)


def divide(model: ir.Model, half: Half, islands: Mapping[str, str]) -> Division:
    """Assign half precision to every node that supports it, except `islands`.

    Raises:
        InputError: the graph has no node with a name in `islands`.
    """
    unknown = set(islands) - {label(n) for n in model.graph}
    if unknown:
        message = f"cannot keep {min(unknown)!r} in float32: the graph has no node with this name."
        raise InputError(message, argument="islands", got=min(unknown))
    opset = max(model.opset_imports[""], half.opset)
    kept: dict[str, str] = {}
    lowered: dict[ir.Node, Slots] = {}
    for node in model.graph:
        slots = _slots(node, opset, half)
        if isinstance(slots, str):
            kept[label(node)] = slots
        elif slots is not None and label(node) in islands:
            kept[label(node)] = islands[label(node)]
        elif slots is not None:
            lowered[node] = slots
    return Division(half=half, lowered=lowered, islands=kept)


def reads_any_type(node: ir.Node, i: int) -> bool:
    """Return whether the operator reads its input i in any precision."""
    return not node.domain and (node.op_type, i) in _ANY


def _slots(node: ir.Node, opset: int, half: Half) -> Slots | str | None:
    """Return how the node would use the type, or why it cannot; None without float32 tensors that can change."""
    op, values = node.op_type, (*node.inputs, *node.outputs)
    if not any(_is_float32(v) for v in values):
        return None
    if node.domain or not onnx.defs.has(op):
        return f"{node.domain}::{op} is not a standard ONNX operator"
    if any(v is not None and v.type is not None and not isinstance(v.type, ir.TensorType) for v in values):
        return "it works on sequences"
    schema = onnx.defs.get_schema(op, opset, "")
    if op == "Constant" or _TYPE_ATTRIBUTES & set(schema.attributes):
        return f"{op} sets its own type"
    inputs = _type_parameters(node.inputs, schema.inputs, {i for name, i in _FIXED_INPUTS if name == op})
    outputs = _type_parameters(node.outputs, schema.outputs, {i for name, i in _FIXED_OUTPUTS if name == op})
    slots = Slots(inputs=frozenset(i for i in inputs if (op, i) not in _ANY), outputs=frozenset(outputs))
    if not slots.inputs and not slots.outputs:
        return None
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    half_tensor = f"tensor({half.dtype.name.lower()})"
    supported = all(half_tensor in allowed[t] for t in (*inputs.values(), *outputs.values()))
    return slots if supported else f"{op} does not support {half.name}"


def _type_parameters(
    values: Sequence[ir.Value | None], formals: Sequence[onnx.defs.OpSchema.FormalParameter], fixed: set[int]
) -> dict[int, str]:
    """Return position -> the schema's type parameter, of float32 values. `fixed` stay in float32."""
    last = len(formals) - 1  # may be variadic
    types = {i: formals[min(i, last)].type_str for i, v in enumerate(values) if _is_float32(v) and i not in fixed}
    return {i: name for i, name in types.items() if not name.startswith("tensor(")}  # else float32 is required


def _is_float32(value: ir.Value | None) -> bool:
    return value is not None and bool(value.name) and value.dtype == FLOAT


def constant_islands(model: ir.Model, half: Half) -> dict[str, str]:
    """Return the nodes whose constants do not fit the type: a number beyond its range, or a scalar that becomes 0.

    Every type has infinities, and one weight among many may become 0. Reads every weight once.
    """
    islands: dict[str, str] = {}
    for value in model.graph.initializers.values():
        if not _is_float32(value) or value.const_value is None:
            continue
        numbers = value.const_value.numpy()
        if not np.isfinite([numbers.min(initial=0), numbers.max(initial=0)]).all():
            numbers = numbers[np.isfinite(numbers)]
        largest = max(float(numbers.max(initial=0)), -float(numbers.min(initial=0)))
        if largest > half.largest:
            reason = f"its constant {value.name} reaches {largest:.3g}, beyond {half.name}'s {half.largest:.5g}"
        elif value.const_value.size == 1 and 0 < largest < half.smallest:
            reason = f"its constant {value.name} is {largest:.3g}, which is 0 in {half.name}"
        else:
            continue
        islands |= {label(usage.node): reason for usage in value.uses()}
    return islands
