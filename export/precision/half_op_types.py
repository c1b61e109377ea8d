"""Find the nodes of a float32 graph that may compute in half precision, and which inputs and outputs change type.

The rules come from ONNX's own operator schemas, so an operator that is new here is handled correctly or stays in
float32. This module looks only at types; `keep_fp32` finds nodes that must stay in float32 because of their values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from calotype.errors import InputError, SourceError

from ..onnx.file import label


@dataclass(frozen=True, kw_only=True)
class Half:
    """A half-precision type. `largest` and `smallest` are its largest and smallest positive numbers."""

    name: str
    dtype: ir.DataType
    largest: float
    smallest: float
    opset: int  # the first opset whose Conv, Sin, Resize, ... accept the type


PRECISIONS = {
    "fp16": Half(name="fp16", dtype=ir.DataType.FLOAT16, largest=65504.0, smallest=2.0**-24, opset=1),
    # Opset 22 differs from 21 only in this: thirty operators that accept fp16 also accept bf16.
    "bf16": Half(name="bf16", dtype=ir.DataType.BFLOAT16, largest=255 * 2.0**120, smallest=2.0**-133, opset=22),
}
FLOAT = ir.DataType.FLOAT

# Operators whose result does not depend on their input's precision: they read the tensor as it is.
_ANY = {("Shape", 0), ("Size", 0), ("Cast", 0), ("CastLike", 0)}
# Float32 in every precision: they determine sizes, or (LayerNormalization) `stash_type` sets the type.
_FIXED_INPUTS = {("Resize", 1), ("Resize", 2)}
_FIXED_OUTPUTS = {("LayerNormalization", 1), ("LayerNormalization", 2)}
_TYPE_ATTRIBUTES = {"dtype", "output_datatype"}  # set the output type: RandomNormal, EyeLike, HannWindow


@dataclass(frozen=True, kw_only=True)
class Slots:
    """The positions of one node's float32 tensors that change their type with the node's precision.

    `reason` is why the node cannot compute in half precision; None if it can.
    """

    inputs: frozenset[int]
    outputs: frozenset[int]
    any_inputs: frozenset[int]  # accepted in any precision
    reason: str | None

    @property
    def is_float(self) -> bool:
        """Whether the node has float32 tensors that can change."""
        return bool(self.inputs or self.outputs)


def half_of(precision: str) -> Half:
    """Return the type with this name. Raise `InputError` if it is unknown."""
    if precision not in PRECISIONS:
        raise InputError(f"unknown half precision {precision!r}; expected one of {', '.join(PRECISIONS)}.")
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


def slots_of(node: ir.Node, opset: int, half: Half) -> Slots:
    """Return how this node would use the type. `opset` is the graph's."""
    every = Slots(
        inputs=frozenset(i for i, v in enumerate(node.inputs) if _is_float32(v)),
        outputs=frozenset(i for i, v in enumerate(node.outputs) if _is_float32(v)),
        any_inputs=frozenset(),
        reason=None,
    )
    if not every.is_float:
        return every
    if node.domain or not onnx.defs.has(node.op_type):
        return _refused(every, f"{node.domain}::{node.op_type} is not a standard ONNX operator")
    values = (*node.inputs, *node.outputs)
    if any(v is not None and v.type is not None and not isinstance(v.type, ir.TensorType) for v in values):
        return _refused(every, "it works on sequences")
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    if node.op_type == "Constant" or _TYPE_ATTRIBUTES & set(schema.attributes):
        return _refused(every, f"{node.op_type} sets its own type")
    return _by_schema(node, schema, every, half)


def _by_schema(node: ir.Node, schema: onnx.defs.OpSchema, every: Slots, half: Half) -> Slots:
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    half_tensor = f"tensor({half.dtype.name.lower()})"

    def kind(formals: Iterable[onnx.defs.OpSchema.FormalParameter], i: int) -> str:
        listed = list(formals)
        return listed[min(i, len(listed) - 1)].type_str  # the last may be variadic

    def follows(type_str: str) -> bool:
        return not type_str.startswith("tensor(")  # else the operator requires float32 here

    op = node.op_type
    inputs = {i for i in every.inputs if follows(kind(schema.inputs, i)) and (op, i) not in _FIXED_INPUTS}
    outputs = {i for i in every.outputs if follows(kind(schema.outputs, i)) and (op, i) not in _FIXED_OUTPUTS}
    any_inputs = {i for i in inputs if (op, i) in _ANY}
    types = {kind(schema.inputs, i) for i in inputs} | {kind(schema.outputs, i) for i in outputs}
    refused = any(half_tensor not in allowed[t] for t in types)
    return Slots(
        inputs=frozenset(inputs - any_inputs),
        outputs=frozenset(outputs),
        any_inputs=frozenset(any_inputs),
        reason=f"{op} does not support {half.name}" if refused else None,
    )


def _refused(every: Slots, reason: str) -> Slots:
    return Slots(inputs=every.inputs, outputs=every.outputs, any_inputs=frozenset(), reason=reason)


def _is_float32(value: ir.Value | None) -> bool:
    return value is not None and bool(value.name) and value.dtype == FLOAT


@dataclass(frozen=True, kw_only=True)
class Division:
    """Partition of a graph: the nodes that compute in half precision, and why the others do not."""

    half: Half
    slots: Mapping[ir.Node, Slots]  # all nodes
    lowered: frozenset[ir.Node]
    islands: Mapping[str, str]  # node -> reason, for the nodes with floats that stay in float32


def divide(model: ir.Model, half: Half, islands: Mapping[str, str]) -> Division:
    """Assign half precision to every node that supports it, except `islands`.

    Raises:
        InputError: the graph has no node with a name in `islands`.
    """
    unknown = set(islands) - {label(n) for n in model.graph}
    if unknown:
        raise InputError(f"cannot keep {min(unknown)!r} in float32: the graph has no node with this name.")
    opset = max(model.opset_imports[""], half.opset)
    slots = {n: slots_of(n, opset, half) for n in model.graph}
    kept: dict[str, str] = {}
    lowered = set()
    for node, own in slots.items():
        reason = own.reason or islands.get(label(node))
        if reason is not None and own.is_float:
            kept[label(node)] = reason
        elif own.is_float:
            lowered.add(node)
    return Division(half=half, slots=slots, lowered=frozenset(lowered), islands=kept)


def constant_islands(model: ir.Model, half: Half) -> dict[str, str]:
    """Return the nodes whose constants do not fit the type: a number beyond its range, or a scalar that becomes 0.

    Every type has infinities, and one weight among many may become 0. Reads every weight once.
    """
    islands: dict[str, str] = {}
    for value in model.graph.initializers.values():
        if not _is_float32(value) or value.const_value is None:
            continue
        largest = _largest(value.const_value)
        if largest > half.largest:
            reason = f"its constant {value.name} reaches {largest:.3g}, beyond {half.name}'s {half.largest:.5g}"
        elif value.const_value.size == 1 and 0 < largest < half.smallest:
            reason = f"its constant {value.name} is {largest:.3g}, which is 0 in {half.name}"
        else:
            continue
        islands |= {label(usage.node): reason for usage in value.uses()}
    return islands


def _largest(tensor: ir.TensorProtocol) -> float:
    """Return the largest finite magnitude."""
    numbers = tensor.numpy()
    ends = np.array([numbers.min(initial=0), numbers.max(initial=0)])
    if not np.isfinite(ends).all():
        finite = numbers[np.isfinite(numbers)]
        ends = np.array([finite.min(initial=0), finite.max(initial=0)])
    return float(np.abs(ends).max())


def halved(tensor: ir.TensorProtocol, half: Half) -> Callable[[], ir.Tensor[Any]]:
    """Return a function that converts the tensor to the type."""

    def make() -> ir.Tensor[Any]:
        return ir.Tensor(tensor.numpy().astype(half.dtype.numpy()), dtype=half.dtype)

    return make
