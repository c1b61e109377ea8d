"""Which nodes of a float32 graph may compute in half precision, and through which of their inputs and outputs.

Read from ONNX's own table of operators, so that an operator that is new here is right or stays in float32. Knows types
alone; which nodes had better stay in float32 for their values' sake is `islands`' to say.
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
    """A half-precision type; `largest` and `smallest` are the ends of what it holds besides 0."""

    name: str
    dtype: ir.DataType
    largest: float
    smallest: float
    opset: int  # the first whose Conv, Sin, Resize, ... take the type


PRECISIONS = {
    "fp16": Half(name="fp16", dtype=ir.DataType.FLOAT16, largest=65504.0, smallest=2.0**-24, opset=1),
    # Opset 22 differs from 21 in nothing else: thirty operators that took fp16 take bf16 too.
    "bf16": Half(name="bf16", dtype=ir.DataType.BFLOAT16, largest=255 * 2.0**120, smallest=2.0**-133, opset=22),
}
FLOAT = ir.DataType.FLOAT

# Operators whose result says nothing of their input's precision: they read the tensor as it is.
_ANY = {("Shape", 0), ("Size", 0), ("Cast", 0), ("CastLike", 0)}
# Float32 in every precision: sizes are computed from them, or (LayerNormalization) `stash_type` says so.
_FIXED_INPUTS = {("Resize", 1), ("Resize", 2)}
_FIXED_OUTPUTS = {("LayerNormalization", 1), ("LayerNormalization", 2)}
_TYPE_ATTRIBUTES = {"dtype", "output_datatype"}  # the node says its own type: RandomNormal, EyeLike, HannWindow


@dataclass(frozen=True, kw_only=True)
class Slots:
    """The float32 tensors of one node: by position, those that change their type with the node's precision.

    `reason` says why the node cannot be in half precision at all; None where it can.
    """

    inputs: frozenset[int]
    outputs: frozenset[int]
    any_inputs: frozenset[int]  # taken in whichever precision they come
    reason: str | None

    @property
    def is_float(self) -> bool:
        """Is there anything to decide?"""
        return bool(self.inputs or self.outputs)


def half_of(precision: str) -> Half:
    """The type of this name. Raises `InputError`."""
    if precision not in PRECISIONS:
        raise InputError(f"there is no half precision {precision!r}; there are {', '.join(PRECISIONS)}.")
    return PRECISIONS[precision]


def raise_opset(model: ir.Model, half: Half) -> None:
    """To the first whose operators take the type. Raises `SourceError` for a graph too old for that to be harmless."""
    opset = model.opset_imports[""]
    if opset < half.opset - 1:
        raise SourceError(f"{half.name} wants a graph of opset {half.opset - 1} or later, and this one's is {opset}.")
    model.opset_imports[""] = max(opset, half.opset)


def slots_of(node: ir.Node, opset: int, half: Half) -> Slots:
    """How this node would take the type. `opset` is the graph's."""
    every = Slots(
        inputs=frozenset(i for i, v in enumerate(node.inputs) if _is_float32(v)),
        outputs=frozenset(i for i, v in enumerate(node.outputs) if _is_float32(v)),
        any_inputs=frozenset(),
        reason=None,
    )
    if not every.is_float:
        return every
    if node.domain or not onnx.defs.has(node.op_type):
        return _refused(every, f"{node.domain}::{node.op_type} is no operator of ONNX's own")
    if any(v is not None and v.type is not None and not isinstance(v.type, ir.TensorType) for v in _values(node)):
        return _refused(every, "it works on sequences")
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    if node.op_type == "Constant" or _TYPE_ATTRIBUTES & set(schema.attributes):
        return _refused(every, f"{node.op_type} states its own type")
    return _by_schema(node, schema, every, half)


def _by_schema(node: ir.Node, schema: onnx.defs.OpSchema, every: Slots, half: Half) -> Slots:
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    wanted = f"tensor({half.dtype.name.lower()})"

    def kind(formals: Iterable[onnx.defs.OpSchema.FormalParameter], i: int) -> str:
        listed = list(formals)
        return listed[min(i, len(listed) - 1)].type_str  # the last may be variadic

    def follows(type_str: str) -> bool:
        return not type_str.startswith("tensor(")  # else the operator wants float32 here

    op = node.op_type
    inputs = {i for i in every.inputs if follows(kind(schema.inputs, i)) and (op, i) not in _FIXED_INPUTS}
    outputs = {i for i in every.outputs if follows(kind(schema.outputs, i)) and (op, i) not in _FIXED_OUTPUTS}
    any_inputs = {i for i in inputs if (op, i) in _ANY}
    types = {kind(schema.inputs, i) for i in inputs} | {kind(schema.outputs, i) for i in outputs}
    refused = any(wanted not in allowed[t] for t in types)
    return Slots(
        inputs=frozenset(inputs - any_inputs),
        outputs=frozenset(outputs),
        any_inputs=frozenset(any_inputs),
        reason=f"{op} takes no {half.name}" if refused else None,
    )


def _refused(every: Slots, reason: str) -> Slots:
    return Slots(inputs=every.inputs, outputs=every.outputs, any_inputs=frozenset(), reason=reason)


def _values(node: ir.Node) -> list[ir.Value | None]:
    return [*node.inputs, *node.outputs]


def _is_float32(value: ir.Value | None) -> bool:
    return value is not None and bool(value.name) and value.dtype == FLOAT


@dataclass(frozen=True, kw_only=True)
class Division:
    """A graph divided: the nodes that compute in half precision, and why the others do not."""

    half: Half
    slots: Mapping[ir.Node, Slots]  # of all nodes
    lowered: frozenset[ir.Node]
    islands: Mapping[str, str]  # node -> reason, of the nodes that compute on floats and stay in float32


def divide(model: ir.Model, half: Half, islands: Mapping[str, str]) -> Division:
    """Every node that can goes to half precision, but those named. Raises `InputError` for a name without a node."""
    unknown = set(islands) - {label(n) for n in model.graph}
    if unknown:
        raise InputError(f"the graph has no node {min(unknown)!r} to keep in float32.")
    opset = max(model.opset_imports[""], half.opset)
    slots = {n: slots_of(n, opset, half) for n in model.graph}
    kept: dict[str, str] = {}
    lowered = set()
    for node, said in slots.items():
        reason = said.reason or islands.get(label(node))
        if reason is not None and said.is_float:
            kept[label(node)] = reason
        elif said.is_float:
            lowered.add(node)
    return Division(half=half, slots=slots, lowered=frozenset(lowered), islands=kept)


def constant_islands(model: ir.Model, half: Half) -> dict[str, str]:
    """Nodes whose constants do not go into the type: a number beyond its range, or a scalar that would become 0.

    Every type holds infinities; a weight among many that is flushed to 0 is no loss. Reads every weight once.
    """
    found: dict[str, str] = {}
    for value in model.graph.initializers.values():
        if not _is_float32(value) or value.const_value is None:
            continue
        largest = _largest(value.const_value)
        if largest > half.largest:
            reason = f"its constant {value.name} reaches {largest:.3g}, beyond {half.name}'s {half.largest:.5g}"
        elif value.const_value.size == 1 and 0 < largest < half.smallest:
            reason = f"its constant {value.name} is {largest:.3g}, which {half.name} takes for 0"
        else:
            continue
        found |= {label(usage.node): reason for usage in value.uses()}
    return found


def _largest(tensor: ir.TensorProtocol) -> float:
    """The largest finite magnitude."""
    numbers = tensor.numpy()
    ends = np.array([numbers.min(initial=0), numbers.max(initial=0)])
    if not np.isfinite(ends).all():
        finite = numbers[np.isfinite(numbers)]
        ends = np.array([finite.min(initial=0), finite.max(initial=0)])
    return float(np.abs(ends).max())


def halved(tensor: ir.TensorProtocol, half: Half) -> Callable[[], ir.Tensor[Any]]:
    """The tensor in the type, computed when it is called for."""

    def make() -> ir.Tensor[Any]:
        return ir.Tensor(tensor.numpy().astype(half.dtype.numpy()), dtype=half.dtype)

    return make
