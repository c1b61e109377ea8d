"""A denoiser's graph in three parts: what a picture needs once, what each timestep needs, and what each call needs.

Cut along what hangs on which input, so that it holds for every family: the keys and values of cross-attention and a
control picture's embedding are computed once a picture, the timesteps' embeddings and their projections once a
schedule, in float32. Under guidance both halves of a batch are the same until the text comes in: that much is
computed for one of them.

Knows graphs; compiles and runs nothing.
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
    inputs_behind,
    nodes_of,
    output_of,
    rebuilt,
    replace_uses,
    subgraph,
)

DEEP = "deep"  # what the deep layers made, where it is used for several calls
TIMES = "times"  # the input of the part for each call that holds all that hangs on its timestep, one row for all
OWN_TIMES = "own times"  # the same, where each row of the batch has its own

Sizing = Callable[[int], Any]  # rows of a batch -> a graph of that size, of our own


@dataclass(frozen=True, kw_only=True)
class Partition:
    """The three graphs.

    Attributes:
        once: from the inputs that stay to what `each` takes of them, by `Edge.name`; None where it takes them as they
            are.
        times: makes, for so many rows, the graph from timesteps to what `TIMES` or `OWN_TIMES` has side by side.
        each: from the sample, what stays and the times to the network's own outputs.
    """

    once: Any | None
    times: Sizing
    each: Any


def partition_graph(
    sizing: Sizing, rows: int, inputs: Mapping[str, Dependency], different: Sequence[str] | None
) -> Partition:
    """Take apart the graph of a network.

    Args:
        sizing: makes the graph for a number of rows.
        rows: of the whole batch.
        inputs: which of them stay for a whole picture, which is the timestep, and which are others at every call.
        different: the inputs whose two halves are not the same; None where the batch is not made of two halves with
            the same sample. The part for each call then takes one half of the sample.
    """
    whole = sizing(rows)
    edges, timed = _cut(whole, inputs, rows)
    alike = all(edge.hangs == Dependency.TIME and _is_added(whole, edge) for edge in timed)
    nodes = nodes_of(whole)
    computed = [e for e in edges if e not in timed and nodes[e.node].get_type_name() != "Parameter"]
    each = _for_each_call(whole.clone(), edges, timed, None if alike else rows)
    if different is not None:
        # Of what is cut off, that which hangs on nothing but equal halves is equal too.
        unequal = dependencies_of(whole, dict.fromkeys(different, Dependency.SAMPLE))
        unlike = {edge.name for edge in edges if unequal[edge.node]} | set(different)
        each = _shared(each, sizing(rows // 2), edges, timed, alike=alike, half=rows // 2, unlike=unlike)
    return Partition(
        once=subgraph(whole.clone(), computed, "once") if computed else None,
        times=lambda count: subgraph(sizing(count), timed, "times"),
        each=each,
    )


def _cut(whole: Any, inputs: Mapping[str, Dependency], rows: int) -> tuple[list[Edge], tuple[Edge, ...]]:
    """Where the graph is cut, and which of these edges depend on the timestep.

    Where a table cannot hold what depends on the timestep, that stays in the part for each call.
    """
    edges = cut_edges(whole, dependencies_of(whole, inputs), Dependency.SAMPLE)
    timed = tuple(edge for edge in edges if edge.hangs & Dependency.TIME)
    if _fits_a_table(whole, timed, rows):
        return edges, timed
    inputs = {name: Dependency.SAMPLE if hangs & Dependency.TIME else hangs for name, hangs in inputs.items()}
    return cut_edges(whole, dependencies_of(whole, inputs), Dependency.SAMPLE), ()


def _fits_a_table(whole: Any, timed: Sequence[Edge], rows: int) -> bool:
    """A table holds floats, a row for each image, of inputs that are one number or one vector for each image."""
    floats = all(edge.element == "f32" and edge.shape[:1] == (rows,) for edge in timed)
    return floats and all(len(p.get_output_shape(0)) <= 2 for p in inputs_behind(whole, timed))


def split_deep_layers(each: Any) -> tuple[Any, Any]:
    """The part for each call with `DEEP` as one more output, and what is left of it where that is an input.

    Cut before the last skip connection comes in, as DeepCache does (Ma et al. 2023, arXiv 2312.00858): only the first
    convolution and the last block depend on the new sample then. `InputError` for a network without such a place.
    """
    import openvino as ov

    def place(model: Any) -> Any:
        joined = [n for n in model.get_ordered_ops() if n.get_type_name() == "Concat" and _of_channels(n)]
        if not joined:
            raise InputError("cache_interval needs a U-Net with skip connections, and this network has none.")
        return joined[-1].input(0)

    deep, shallow = each.clone(), each.clone()
    output = place(deep).get_source_output()
    output.set_names({DEEP})
    deep = rebuilt(deep, DEEP, results=[ov.opset13.result(output)])
    taken = place(shallow)
    given = _input(DEEP, tuple(taken.get_shape()), "f32")
    taken.replace_source_output(given.output(0))
    return deep, rebuilt(shallow, "shallow", [given])


def _of_channels(concat: Any) -> bool:
    """Does it join two pictures' channels?"""
    return (
        concat.get_input_size() == 2 and len(concat.get_output_shape(0)) == 4 and concat.get_attributes()["axis"] == 1
    )


def _is_added(model: Any, edge: Edge) -> bool:
    """Do all who take it add it to something larger, so that one row does for all?"""
    takers = [place.get_node().get_type_name() for place in output_of(model, edge).get_target_inputs()]
    return len(edge.shape) == 4 and edge.shape[2:] == (1, 1) and set(takers) <= {"Add", "Multiply"}


def _for_each_call(model: Any, edges: Sequence[Edge], timed: Sequence[Edge], rows: int | None) -> Any:
    """The graph with its edges as inputs. `rows` is how many times there are; None: one for all."""
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
        name = TIMES if rows is None else OWN_TIMES
        inputs.append(_input(name, (rows or 1, sum(sizes)), "f32"))
        cut = ops.variadic_split(inputs[-1], ops.constant(np.int64(1)), ops.constant(np.array(sizes, dtype=np.int64)))
        for i, edge in enumerate(timed):
            shape = ops.constant(np.array((rows or 1, *edge.shape[1:]), dtype=np.int64))
            replace_uses(nodes[edge.node].output(edge.port), ops.reshape(cut.output(i), shape, False).output(0))
    return rebuilt(model, "each", inputs)


def _shared(
    each: Any,
    small: Any,
    edges: Sequence[Edge],
    timed: Sequence[Edge],
    *,
    alike: bool,
    half: int,
    unlike: set[str],
) -> Any:
    """The part for each call, with what its two halves have in common computed for one of them.

    `small` is the whole graph for one half. `unlike` names the inputs whose halves differ.
    """
    import openvino as ov

    ops = ov.opset13
    inputs = {}
    for parameter in each.get_parameters():
        name = next(iter(parameter.output(0).get_names()))
        differs = name in unlike or name == OWN_TIMES
        inputs[name] = Dependency.SAMPLE if differs else Dependency.GIVEN
    common = cut_edges(each, dependencies_of(each, inputs), Dependency.SAMPLE)
    # Inputs that have all rows stay as they are; of the sample there is one half to be had.
    whole_inputs = {p.get_friendly_name() for p in each.get_parameters()} - {_named(each, "sample")}
    common = [edge for edge in common if edge.shape[:1] == (2 * half,) and edge.node not in whole_inputs]
    small = _for_each_call(small, edges, timed, None if alike else half)
    inputs_of_whole = {name: p.output(0) for p in each.get_parameters() for name in p.output(0).get_names()}
    for parameter in small.get_parameters():  # its inputs are the first halves of the whole's
        (name,) = parameter.output(0).get_names()
        if name != "sample" and name in inputs_of_whole:
            whole = inputs_of_whole[name]
            replace_uses(parameter.output(0), whole if name == TIMES else _rows(whole, half))
    found, nodes = nodes_of(small), nodes_of(each)
    for edge in common:
        node, output = nodes[edge.node], found[edge.node].output(edge.port)
        doubled = ops.concat([output, output], 0)
        replace_uses(node.output(edge.port), doubled.output(0))
    return rebuilt(each, "each", [*small.get_parameters()])


def _named(model: Any, name: str) -> str:
    """How the node of an input is called."""
    return str(model.input(name).get_node().get_friendly_name())


def _rows(output: Any, count: int) -> Any:
    import openvino as ov

    ops = ov.opset13
    ends = [ops.constant(np.array([n], dtype=np.int64)) for n in (0, count, 1, 0)]
    return ops.slice(output, *ends).output(0)


def _input(name: str, shape: Sequence[int], element: str) -> Any:
    import openvino as ov

    made = ov.opset13.parameter(list(shape), getattr(ov.Type, element), name=name)
    made.output(0).set_names({name})
    return made
