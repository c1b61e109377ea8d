"""A denoiser's graph in three parts: per image, per schedule and per step.

The cuts follow from which node depends on which input, so they hold for every model family. The keys and values of
cross-attention and a control image's embedding are computed once per image. The timesteps' embeddings and their
projections are computed once per schedule, in float32. With guidance, both halves of a batch are the same until the
text comes in: that part is computed for one half only.

This module knows graphs. It compiles and runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import InputError
from .graph import (
    Dependency,
    Edge,
    cut_edges,
    dependencies_of,
    nodes_of,
    parameters_behind,
    rebuilt,
    replace_uses,
    subgraph,
)

DEEP = "deep"  # the output of the deep layers, which several steps reuse
TIME_VALUES = "time values"  # the input of `per_step` for everything that depends on the timestep: one row for all rows
ROW_TIME_VALUES = "row time values"  # the same, with one row for each row of the batch

Sizing = Callable[[int], Any]  # the number of rows of a batch -> a new graph of that size


@dataclass(frozen=True, kw_only=True)
class Partition:
    """The three graphs.

    Attributes:
        per_image: from the constant inputs to the values that `per_step` needs, named as `Edge.name`; None if
            `per_step` takes the inputs themselves.
        per_schedule: makes, for a number of rows, the graph from timesteps to the values that `TIME_VALUES` or
            `ROW_TIME_VALUES` holds next to each other.
        per_step: from the sample, the constant values and the time values to the network's outputs.
    """

    per_image: Any | None
    per_schedule: Sizing
    per_step: Any


def partition_graph(
    sizing: Sizing, rows: int, inputs: Mapping[str, Dependency], different: Sequence[str] | None
) -> Partition:
    """Partition the graph of a network.

    Args:
        sizing: makes the graph for a number of rows.
        rows: the rows of the whole batch.
        inputs: for each input, whether it stays the same for an image, is the timestep, or changes at every step.
        different: the inputs whose two halves differ; None if the batch does not have two halves with the same sample.
            If it has, `per_step` takes one half of the sample.
    """
    full = sizing(rows)
    edges, timed = _cut(full, inputs, rows)
    alike = all(edge.depends_on == Dependency.TIME and _is_broadcast(full, edge) for edge in timed)
    nodes = nodes_of(full)
    computed = [e for e in edges if e not in timed and nodes[e.node].get_type_name() != "Parameter"]
    per_step = _step_graph(full.clone(), edges, timed, None if alike else rows)
    if different is not None:
        # A value that depends only on equal halves has equal halves too.
        unequal = dependencies_of(full, dict.fromkeys(different, Dependency.SAMPLE))
        unlike = {edge.name for edge in edges if unequal[edge.node]} | set(different)
        per_step = _share_halves(per_step, sizing(rows // 2), edges, timed, alike=alike, half=rows // 2, unlike=unlike)
    return Partition(
        per_image=subgraph(full.clone(), computed, "per_image") if computed else None,
        per_schedule=lambda count: subgraph(sizing(count), timed, "per_schedule"),
        per_step=per_step,
    )


def _cut(full: Any, inputs: Mapping[str, Dependency], rows: int) -> tuple[list[Edge], tuple[Edge, ...]]:
    """Return the edges where the graph is cut, and those of them that depend on the timestep.

    If a table cannot hold the values that depend on the timestep, they stay in the part for each step.
    """
    edges = cut_edges(full, dependencies_of(full, inputs), Dependency.SAMPLE)
    timed = tuple(edge for edge in edges if edge.depends_on & Dependency.TIME)
    if _fits_a_table(full, timed, rows):
        return edges, timed
    inputs = {name: Dependency.SAMPLE if kind & Dependency.TIME else kind for name, kind in inputs.items()}
    return cut_edges(full, dependencies_of(full, inputs), Dependency.SAMPLE), ()


def _fits_a_table(full: Any, timed: Sequence[Edge], rows: int) -> bool:
    """Return whether the values are floats with a row for each image, from inputs that are numbers or vectors."""
    floats, nodes = all(edge.element == "f32" and edge.shape[:1] == (rows,) for edge in timed), nodes_of(full)
    inputs = parameters_behind(full, [nodes[edge.node] for edge in timed])
    return floats and all(len(parameter.get_output_shape(0)) <= 2 for parameter in inputs)


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
            raise InputError("cache_interval needs a U-Net with skip connections, and this network has none.")
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
    """Return whether the node concatenates the channels of two tensors."""
    return (
        concat.get_input_size() == 2 and len(concat.get_output_shape(0)) == 4 and concat.get_attributes()["axis"] == 1
    )


def _is_broadcast(model: Any, edge: Edge) -> bool:
    """Return whether every user adds the value to a larger tensor, so that one row serves all rows."""
    output = nodes_of(model)[edge.node].output(edge.port)
    users = [target.get_node().get_type_name() for target in output.get_target_inputs()]
    return len(edge.shape) == 4 and edge.shape[2:] == (1, 1) and set(users) <= {"Add", "Multiply"}


def _step_graph(model: Any, edges: Sequence[Edge], timed: Sequence[Edge], rows: int | None) -> Any:
    """Return the graph with its edges as inputs. `rows` is the number of rows of the time values; None: one for all."""
    import openvino as ov

    ops, inputs, nodes = ov.opset13, [], nodes_of(model)
    for edge in edges:
        node = nodes[edge.node]
        if edge in timed or node.get_type_name() == "Parameter":
            continue
        inputs.append(_input(edge.name, tuple(node.get_output_shape(edge.port)), edge.element))
        replace_uses(node.output(edge.port), inputs[-1].output(0))
    if timed:
        sizes = [int(np.prod(edge.shape[1:])) for edge in timed]
        name = TIME_VALUES if rows is None else ROW_TIME_VALUES
        inputs.append(_input(name, (rows or 1, sum(sizes)), "f32"))
        cut = ops.variadic_split(inputs[-1], ops.constant(np.int64(1)), ops.constant(np.array(sizes, dtype=np.int64)))
        for i, edge in enumerate(timed):
            shape = ops.constant(np.array((rows or 1, *edge.shape[1:]), dtype=np.int64))
            replace_uses(nodes[edge.node].output(edge.port), ops.reshape(cut.output(i), shape, False).output(0))
    return rebuilt(model, "per_step", inputs)


def _share_halves(
    per_step: Any,
    small: Any,
    edges: Sequence[Edge],
    timed: Sequence[Edge],
    *,
    alike: bool,
    half: int,
    unlike: set[str],
) -> Any:
    """Return the part for each step, with what its two halves have in common computed for one half only.

    `small` is the full graph for one half. `unlike` names the inputs whose halves differ.
    """
    import openvino as ov

    ops = ov.opset13
    inputs = {}
    for parameter in per_step.get_parameters():
        name = next(iter(parameter.output(0).get_names()))
        differs = name in unlike or name == ROW_TIME_VALUES
        inputs[name] = Dependency.SAMPLE if differs else Dependency.IMAGE
    common = cut_edges(per_step, dependencies_of(per_step, inputs), Dependency.SAMPLE)
    # Inputs that have all rows stay as they are. Only the sample has one half.
    sample = per_step.input("sample").get_node().get_friendly_name()
    full_inputs = {p.get_friendly_name() for p in per_step.get_parameters()} - {sample}
    common = [edge for edge in common if edge.shape[:1] == (2 * half,) and edge.node not in full_inputs]
    small = _step_graph(small, edges, timed, None if alike else half)
    outputs_by_name = {name: p.output(0) for p in per_step.get_parameters() for name in p.output(0).get_names()}
    for parameter in small.get_parameters():  # its inputs are the first halves of the full graph's
        (name,) = parameter.output(0).get_names()
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
