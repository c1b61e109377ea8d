"""Networks as OpenVINO's graphs: given their sizes, and taken apart along what depends on which input.

Knows graphs alone: nothing of diffusion, of backends or of how a graph is run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import Any

_QUANTIZED = ("i8", "u8", "i4", "u4")


class Dependency(IntFlag):
    """What an output's numbers depend on."""

    NOTHING = 0  # weights alone
    GIVEN = 1  # inputs that stay as they are for a whole picture
    TIME = 2  # the timestep
    SAMPLE = 4  # what changes at every call


@dataclass(frozen=True, kw_only=True)
class Edge:
    """An output on which the rest of a graph hangs: which it is of which node, its shape, and what it hangs on."""

    node: str
    port: int
    shape: tuple[int, ...]
    hangs: Dependency
    element: str  # "f32", "i64"

    @property
    def name(self) -> str:
        """What the tensor is called where it goes in and out of parts."""
        return f"{self.node}:{self.port}"


def sized(model: Any, shapes: Mapping[str, Sequence[int]]) -> Any:
    """A copy for exact shapes, in which everything that the shapes decide is a constant."""
    from openvino.passes import ConstantFolding, Manager

    copy = model.clone()
    copy.reshape({name: list(shape) for name, shape in shapes.items()})
    integers = _hidden_integers(copy)  # folding would turn them into floats, and nothing would be left in eight bits
    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(copy)
    for stand_in, weights in integers:
        replace_uses(stand_in.output(0), weights.output(0))
        copy.remove_parameter(stand_in)
    copy.validate_nodes_and_infer_types()
    return copy


def _hidden_integers(model: Any) -> list[tuple[Any, Any]]:
    """Inputs put in the place of quantized weights, and the weights."""
    import openvino as ov

    found = []
    for node in model.get_ordered_ops():
        kind = node.get_output_element_type(0) if node.get_type_name() == "Constant" else None
        if kind is not None and kind.get_type_name() in _QUANTIZED and len(node.get_output_shape(0)):
            stand_in = ov.opset13.parameter(list(node.get_output_shape(0)), kind)
            replace_uses(node.output(0), stand_in.output(0))
            found.append((stand_in, node))
    model.add_parameters([stand_in for stand_in, _ in found])
    return found


def element_types(model: Any) -> set[str]:
    """Of the weights, and of no numbers that stand alone: "f32", "f16", "i8"."""
    constants = (node for node in model.get_ops() if node.get_type_name() == "Constant")
    return {n.get_output_element_type(0).get_type_name() for n in constants if len(n.get_output_shape(0)) > 1}


def dependencies_of(model: Any, inputs: Mapping[str, Dependency]) -> dict[str, Dependency]:
    """What each node hangs on, by its name; `inputs` says what each input is."""
    found: dict[str, Dependency] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Parameter":
            hangs = Dependency(0)
            for name in node.output(0).get_names():
                hangs |= inputs.get(name, Dependency.NOTHING)
        else:
            hangs = Dependency(0)
            for place in node.inputs():
                hangs |= found[place.get_source_output().get_node().get_friendly_name()]
        found[node.get_friendly_name()] = hangs
    return found


def cut_edges(model: Any, found: Mapping[str, Dependency], beyond: Dependency) -> list[Edge]:
    """The outputs of nodes that do not hang on `beyond`, and are taken by nodes that do or are results.

    Constants are none of them.
    """
    edges = []
    for node in model.get_ordered_ops():
        hangs = found[node.get_friendly_name()]
        if hangs & beyond or not hangs:
            continue
        for port, output in enumerate(node.outputs()):
            takers = (place.get_node() for place in output.get_target_inputs())
            if any(found[t.get_friendly_name()] & beyond or t.get_type_name() == "Result" for t in takers):
                shape = tuple(output.get_shape())
                element = output.get_element_type().get_type_name()
                edges.append(Edge(node=node.get_friendly_name(), port=port, shape=shape, hangs=hangs, element=element))
    return edges


def output_of(model: Any, edge: Edge) -> Any:
    """The edge's output in a copy of the model that it was found in."""
    return nodes_of(model)[edge.node].output(edge.port)


def nodes_of(model: Any) -> dict[str, Any]:
    """Nodes by name. Graphs that were read from ONNX have every name once."""
    return {node.get_friendly_name(): node for node in model.get_ordered_ops()}


def subgraph(model: Any, edges: Iterable[Edge], name: str) -> Any:
    """Of a copy of its own: the graph that computes the edges and nothing else."""
    import openvino as ov

    nodes = nodes_of(model)
    results = []
    for edge in edges:
        output = nodes[edge.node].output(edge.port)
        output.add_names({edge.name})  # an edge may be an input itself, which keeps its own name
        results.append(ov.opset13.result(output))
    return _model(model, results, name)


def replace_uses(output: Any, source: Any) -> None:
    """Let those that take an output take another in its place."""
    for place in list(output.get_target_inputs()):
        place.replace_source_output(source)


def rebuilt(model: Any, name: str, more: Iterable[Any] = (), results: Iterable[Any] = ()) -> Any:
    """The model with the parameters that its results need, among its own and `more`."""
    return _model(model, [*model.get_results(), *results], name, more)


def inputs_behind(model: Any, edges: Iterable[Edge]) -> list[Any]:
    """The model's parameters that these edges depend on."""
    nodes = nodes_of(model)
    needed = _ancestors(nodes[edge.node] for edge in edges)
    return [p for p in model.get_parameters() if p.get_name() in needed]


def _ancestors(nodes: Iterable[Any]) -> set[str]:
    """The unique names of these nodes and of everything that they depend on."""
    needed: set[str] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        key = node.get_name()
        if key not in needed:
            needed.add(key)
            waiting += [place.get_source_output().get_node() for place in node.inputs()]
    return needed


def _model(model: Any, results: list[Any], name: str, more: Iterable[Any] = ()) -> Any:
    """With those parameters alone that the results hang on."""
    import openvino as ov

    needed = _ancestors(results)
    parameters = [p for p in (*model.get_parameters(), *more) if p.get_name() in needed]
    return ov.Model(results, parameters, name)
