"""OpenVINO graphs: set their input shapes, and cut them by which node depends on which input.

This module knows nothing of diffusion, of backends or of how a graph runs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_QUANTIZED = ("i8", "u8", "i4", "u4")


@dataclass(frozen=True, kw_only=True)
class Edge:
    """An output at a cut of a graph: its node, its port, its shape and its element type."""

    node: str
    port: int
    shape: tuple[int, ...]
    element: str  # "f32", "i64"

    @property
    def name(self) -> str:
        """The name of the tensor as an input or output of a part."""
        return f"{self.node}:{self.port}"


def sized(model: Any, shapes: Mapping[str, Sequence[int]]) -> Any:
    """Return a copy for exact shapes, in which every value that depends only on shapes is a constant."""
    from openvino.passes import ConstantFolding, Manager

    copy = model.clone()
    copy.reshape({name: list(shape) for name, shape in shapes.items()})
    integers = _hidden_integers(copy)  # folding would turn 8-bit weights into floats
    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(copy)
    for stand_in, weights in integers:
        replace_uses(stand_in.output(0), weights.output(0))
        copy.remove_parameter(stand_in)
    copy.validate_nodes_and_infer_types()
    return copy


def _hidden_integers(model: Any) -> list[tuple[Any, Any]]:
    """Replace quantized weights by inputs, and return the pairs of input and weights."""
    import openvino as ov

    pairs = []
    for node in model.get_ordered_ops():
        kind = node.get_output_element_type(0) if node.get_type_name() == "Constant" else None
        if kind is not None and kind.get_type_name() in _QUANTIZED and len(node.get_output_shape(0)):
            stand_in = ov.opset13.parameter(list(node.get_output_shape(0)), kind)
            replace_uses(node.output(0), stand_in.output(0))
            pairs.append((stand_in, node))
    model.add_parameters([stand_in for stand_in, _ in pairs])
    return pairs


def element_types(model: Any) -> set[str]:
    """Return the element types of the weights, such as "f32", "f16" and "i8"; scalars do not count."""
    constants = (node for node in model.get_ops() if node.get_type_name() == "Constant")
    return {n.get_output_element_type(0).get_type_name() for n in constants if len(n.get_output_shape(0)) > 1}


def depending_on(model: Any, names: Collection[str] | None = None) -> set[str]:
    """Return the names of the nodes that depend on one of these inputs; by default on any."""
    nodes: set[str] = set()
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Parameter":
            depends = names is None or any(name in names for name in node.output(0).get_names())
        else:
            sources = (port.get_source_output().get_node() for port in node.inputs())
            depends = any(source.get_friendly_name() in nodes for source in sources)
        if depends:
            nodes.add(node.get_friendly_name())
    return nodes


def cut_edges(model: Any, beyond: Collection[str]) -> list[Edge]:
    """Return the outputs that do not depend on the inputs `beyond` but are used by a result or a node that does.

    Outputs that depend on no input do not count.
    """
    edges, after = [], depending_on(model, beyond)
    before = depending_on(model) - after
    for node in model.get_ordered_ops():
        for port, output in enumerate(node.outputs()) if node.get_friendly_name() in before else ():
            users = [target.get_node() for target in output.get_target_inputs()]
            if any(user.get_friendly_name() in after or user.get_type_name() == "Result" for user in users):
                kind, shape = output.get_element_type().get_type_name(), tuple(output.get_shape())
                edges.append(Edge(node=node.get_friendly_name(), port=port, shape=shape, element=kind))
    return edges


def nodes_of(model: Any) -> dict[str, Any]:
    """Return the nodes by name. Names are unique in graphs that come from ONNX."""
    return {node.get_friendly_name(): node for node in model.get_ordered_ops()}


def subgraph(model: Any, edges: Iterable[Edge], name: str) -> Any:
    """Return the graph that computes only the edges. It changes `model`, which must be a copy."""
    import openvino as ov

    nodes = nodes_of(model)
    results = []
    for edge in edges:
        output = nodes[edge.node].output(edge.port)
        output.add_names({edge.name})  # an edge may be an input, which keeps its name
        results.append(ov.opset13.result(output))
    return ov.Model(results, parameters_behind(model, results), name)


def replace_uses(output: Any, source: Any) -> None:
    """Replace an output by another one at all its users."""
    for target in list(output.get_target_inputs()):
        target.replace_source_output(source)


def rebuilt(model: Any, name: str, more: Iterable[Any] = (), results: Iterable[Any] = ()) -> Any:
    """Return the model with these additional results, and with the parameters (own or `more`) that it needs."""
    import openvino as ov

    results = [*model.get_results(), *results]
    return ov.Model(results, parameters_behind(model, results, more), name)


def parameters_behind(model: Any, nodes: Iterable[Any], more: Iterable[Any] = ()) -> list[Any]:
    """Return the parameters (the model's own or `more`) that these nodes depend on."""
    needed: set[str] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        key = node.get_name()
        if key not in needed:
            needed.add(key)
            waiting += [port.get_source_output().get_node() for port in node.inputs()]
    return [p for p in (*model.get_parameters(), *more) if p.get_name() in needed]
