"""A denoiser's graph in three parts: per image, per timestep and per step.

The cuts follow from which node depends on which input, so they hold for every model family. The keys and values of
cross-attention and a control image's embedding are computed once per image. The timesteps' embeddings and their
projections are computed once per schedule, in float32. With guidance, both halves of a batch are the same until the
text comes in: that part is computed for one half only.

This module knows graphs. It compiles and runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import InputError
from .graph import Edge, cut_edges, depending_on, nodes_of, rebuilt, replace_uses, subgraph

DEEP = "deep"  # the output of the deep layers, which several steps reuse
TIME_VALUES = "time values"  # the input of `per_step` for everything that depends on the timestep: one row for all rows
ROW_TIME_VALUES = "row time values"  # the same, if it also depends on text or sizes: one row for each row of the batch

Sizing = Callable[[int], Any]  # the number of rows of a batch -> a new graph of that size


@dataclass(frozen=True, kw_only=True)
class Partition:
    """The three graphs. A part is None if it has nothing to compute.

    Attributes:
        per_image: from the constant inputs to the values that `per_step` needs, named as `Edge.name`.
        per_timestep: from one timestep (and the constants that are vectors, such as sizes and pooled text) to the
            values that `TIME_VALUES` or `ROW_TIME_VALUES` holds next to each other.
        per_step: from the other inputs and these values to the network's outputs.
    """

    per_image: Any | None
    per_timestep: Any | None
    per_step: Any


def partition_graph(
    sizing: Sizing, rows: int, constants: Collection[str], different: Collection[str] | None
) -> Partition:
    """Partition the graph of a network.

    Args:
        sizing: makes the graph for a number of rows.
        rows: the rows of the whole batch.
        constants: the inputs that stay the same for an image.
        different: the inputs whose two halves differ; None if the batch does not have two halves with the same sample.
            If it has, `per_step` takes one half of the sample.
    """
    full = sizing(rows)
    inputs = {name for port in full.inputs for name in port.get_names()}
    nodes = nodes_of(full)
    kept = [e for e in cut_edges(full, inputs - {*constants}) if nodes[e.node].get_type_name() != "Parameter"]
    vectors = _vectors(full, constants)
    timed = _timed(full, rows, vectors)
    alone = not depending_on(full, vectors) & {edge.node for edge in timed}
    per_image = subgraph(full.clone(), kept, "per_image") if kept else None
    unequal = depending_on(full, different or ())
    per_step = _step_graph(full, kept, timed, rows, alone=alone)
    if different is not None:
        half = rows // 2
        # A value that depends only on equal halves has equal halves too.
        unlike = {*different, ROW_TIME_VALUES, *(edge.name for edge in kept if edge.node in unequal)}
        small = _step_graph(sizing(half), kept, timed, half, alone=alone)
        per_step = _share_halves(per_step, small, half, unlike)
    per_timestep = subgraph(sizing(1 if alone else rows), timed, "per_timestep") if timed else None
    return Partition(per_image=per_image, per_timestep=per_timestep, per_step=per_step)


def split_timesteps(make: Callable[[], Any], rows: int) -> tuple[Any | None, Any]:
    """Return the graph of all that depends on the timestep alone, and the rest with `ROW_TIME_VALUES` as an input.

    The first graph also takes vectors, such as sizes and pooled text. It is None if the timestep has no such part.

    Args:
        make: makes the network's graph of known sizes.
        rows: the rows of the batch.
    """
    full = make()
    inputs = {name for port in full.inputs for name in port.get_names()}
    timed = _timed(full, rows, _vectors(full, inputs - {"timestep"}))
    per_timestep = subgraph(make(), timed, "per_timestep") if timed else None
    return per_timestep, _step_graph(full, [], timed, rows, alone=False)


def _vectors(model: Any, names: Collection[str]) -> set[str]:
    return {name for name in names if len(model.input(name).get_shape()) <= 2}


def _timed(model: Any, rows: int, vectors: set[str]) -> list[Edge]:
    """Return the edges behind which only other inputs than the timestep and the vectors count."""
    inputs = {name for port in model.inputs for name in port.get_names()}
    after = depending_on(model, {"timestep"})
    timed = [edge for edge in cut_edges(model, inputs - {"timestep", *vectors}) if edge.node in after]
    tabular = all(edge.element == "f32" and edge.shape[:1] == (rows,) for edge in timed)
    return timed if tabular else []


def split_deep_layers(per_step: Any) -> tuple[Any, Any]:
    """Return the part for each step with `DEEP` as one more output, and its shallow rest with `DEEP` as an input.

    The cut is before the last skip connection comes in, as in DeepCache (Ma et al. 2023, arXiv 2312.00858): then only
    the first convolution and the last block depend on the new sample.

    Raises:
        InputError: the network has no skip connection.
    """
    import openvino as ov

    def last_skip(model: Any) -> Any:
        joined = [n for n in model.get_ordered_ops() if n.get_type_name() == "Concat" and _joins_channels(n)]
        if not joined:
            message = "cache_interval needs a U-Net with skip connections, and this network has none."
            raise InputError(message, argument="cache_interval")
        return joined[-1].input(0)

    deep, shallow = per_step.clone(), per_step.clone()
    output = last_skip(deep).get_source_output()
    output.set_names({DEEP})
    deep = rebuilt(deep, DEEP, results=[ov.opset13.result(output)])
    target = last_skip(shallow)
    source = _input(DEEP, tuple(target.get_shape()), "f32")
    target.replace_source_output(source.output(0))
    return deep, rebuilt(shallow, "shallow", [source])


def _joins_channels(concat: Any) -> bool:
    return (
        concat.get_input_size() == 2 and len(concat.get_output_shape(0)) == 4 and concat.get_attributes()["axis"] == 1
    )


def _step_graph(model: Any, kept: Sequence[Edge], timed: Sequence[Edge], rows: int, *, alone: bool) -> Any:
    """Return the graph with the values of `kept` and `timed` as inputs. It changes `model`.

    `alone`: the values of `timed` depend on the timestep alone, so that they have one row.
    """
    import openvino as ov

    ops, nodes, inputs = ov.opset13, nodes_of(model), []
    for edge in kept:
        output = nodes[edge.node].output(edge.port)
        inputs.append(_input(edge.name, tuple(output.get_shape()), edge.element))
        replace_uses(output, inputs[-1].output(0))
    if timed:
        sizes = [int(np.prod(edge.shape[1:])) for edge in timed]
        count, name = (1, TIME_VALUES) if alone else (rows, ROW_TIME_VALUES)
        inputs.append(_input(name, (count, sum(sizes)), "f32"))
        cut = ops.variadic_split(inputs[-1], ops.constant(np.int64(1)), ops.constant(np.array(sizes, dtype=np.int64)))
        for i, edge in enumerate(timed):
            output = nodes[edge.node].output(edge.port)
            users = {target.get_node().get_type_name() for target in output.get_target_inputs()}
            value = ops.reshape(cut.output(i), ops.constant(np.array((count, *edge.shape[1:]), dtype=np.int64)), False)
            if alone and (edge.shape[2:] != (1, 1) or not users <= {"Add", "Multiply"}):
                # Not every user adds it to a larger tensor, so each row of the batch needs a row.
                value = ops.broadcast(value, ops.constant(np.array((rows, *edge.shape[1:]), dtype=np.int64)))
                value.set_friendly_name(f"{edge.name} rows")  # `_share_halves` finds it by its name
            replace_uses(output, value.output(0))
    return rebuilt(model, "per_step", inputs)


def _share_halves(per_step: Any, small: Any, half: int, different: set[str]) -> Any:
    """Return the part for each step, with what its two halves have in common computed for one half only.

    `small` is the same part for one half. `different` names the inputs whose halves differ.
    """
    import openvino as ov

    ops = ov.opset13
    common = cut_edges(per_step, different)
    # Inputs that have all rows stay as they are. Only the sample has one half.
    sample = per_step.input("sample").get_node().get_friendly_name()
    full_inputs = {p.get_friendly_name() for p in per_step.get_parameters()} - {sample}
    common = [edge for edge in common if edge.shape[:1] == (2 * half,) and edge.node not in full_inputs]
    outputs_by_name = {name: p.output(0) for p in per_step.get_parameters() for name in p.output(0).get_names()}
    for parameter in small.get_parameters():  # its inputs are the first halves of the full graph's
        name = next(iter(parameter.output(0).get_names()))
        if name != "sample" and name in outputs_by_name:
            output = outputs_by_name[name]
            replace_uses(parameter.output(0), output if name == TIME_VALUES else _rows(output, half))
    small_nodes, nodes = nodes_of(small), nodes_of(per_step)
    for edge in common:
        node, output = nodes[edge.node], small_nodes[edge.node].output(edge.port)
        doubled = ops.concat([output, output], 0)
        replace_uses(node.output(edge.port), doubled.output(0))
    return rebuilt(per_step, "per_step", [*small.get_parameters()])


def _rows(output: Any, count: int) -> Any:
    import openvino as ov

    ops = ov.opset13
    ends = [ops.constant(np.array([n], dtype=np.int64)) for n in (0, count, 1, 0)]
    return ops.slice(output, *ends).output(0)


def _input(name: str, shape: Sequence[int], element: str) -> Any:
    import openvino as ov

    parameter = ov.opset13.parameter(list(shape), getattr(ov.Type, element), name=name)
    parameter.output(0).set_names({name})
    return parameter
