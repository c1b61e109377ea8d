"""Measure the largest magnitude of a graph's tensors on real inputs, on ONNX Runtime, without keeping the tensors.

Each requested tensor gets a few nodes that reduce it to one number (or one per channel); these are the outputs. ONNX
Runtime gets the graph as bytes and reads the weights from their own files, so nothing is written and no weight is
loaded into Python. This module does not know precisions; `quantize` and others use its results.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calotype.system import threads

Feeds = Iterable[Mapping[str, NDArray[Any]]]
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Statistics of one tensor over all feeds. `amax` (largest magnitude) is valid only if all numbers are finite."""

    amax: float
    finite: bool
    channel_amax: NDArray[np.float32] | None = None  # [C], if requested


def observe(
    source: Path, feeds: Feeds, names: Collection[str] | None = None, *, per_channel: Collection[str] = ()
) -> dict[str, Observed]:
    """Run the graph on every feed and return the statistics of tensors.

    Args:
        names: the tensors; None means all floating-point tensors, inputs included.
        per_channel: tensors that also get a magnitude per channel: axis 1 if a Conv reads the tensor, else the last.

    Raises:
        ValueError: a name is not a floating-point input or result of the graph.
    """
    model = ir.load(source)
    values = float_values(model)
    requested = list(values) if names is None else list(dict.fromkeys([*names, *per_channel]))
    unknown = [name for name in requested if name not in values]
    if unknown:
        raise ValueError(f"{source} has no floating-point tensor named {unknown[0]!r} that depends on its inputs.")
    for name in requested:
        _watch(model.graph, values[name], by_channel=name in per_channel)
    session = open_session(model, source.parent)
    outputs = [output.name for output in model.graph.outputs]
    amax = dict.fromkeys(requested, 0.0)
    finite = dict.fromkeys(requested, True)
    channels: dict[str, NDArray[np.float32]] = {}
    for feed in feeds:
        seen = dict(zip(outputs, session.run(outputs, dict(feed)), strict=True))
        for name in requested:
            amax[name] = max(amax[name], float(seen[_AMAX + name]))
            finite[name] &= float(seen[_ZERO + name]) == 0
            if name in per_channel:
                channels[name] = np.maximum(channels.get(name, np.float32(0)), seen[_CHANNELS + name])
    return {n: Observed(amax=amax[n], finite=finite[n], channel_amax=channels.get(n)) for n in requested}


def open_session(model: ir.Model, folder: Path) -> Any:
    """Open a graph in memory with ONNX Runtime, with the external data of `folder`.

    Quantized tensors are computed in floating point, as the graph defines them: these sessions measure values, not
    the speed of kernels.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads.available()
    options.log_severity_level = 3
    # Reduce a tensor as soon as it is computed, then free it: the default order keeps all tensors to the end.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.absolute()))
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])


def float_values(model: ir.Model) -> dict[str, ir.Value]:
    """Return the floating-point tensors that depend on the graph's inputs, in the order of computation."""
    computed = [output for node in model.graph for output in node.outputs]
    return {v.name: v for v in (*model.graph.inputs, *computed) if v.name and v.dtype in FLOATS}


_AMAX, _ZERO, _CHANNELS = "calotype.amax.", "calotype.zero.", "calotype.channels."


def _watch(graph: ir.Graph, value: ir.Value, *, by_channel: bool) -> None:
    """Add the reductions of one tensor to the graph's outputs."""
    nodes: list[ir.Node] = []

    def add(op: str, *inputs: ir.Value, name: str | None = None, **attributes: Any) -> ir.Value:
        nodes.append(ir.node(op, inputs, attributes))
        nodes[-1].outputs[0].name = name
        return nodes[-1].outputs[0]

    def constant(numbers: Any) -> ir.Value:
        return add("Constant", value=ir.tensor(np.asarray(numbers)))

    reads = {usage.node.op_type for usage in value.uses()}
    tensor = value if value.dtype == ir.DataType.FLOAT else add("Cast", value, to=ir.DataType.FLOAT)
    magnitude = add("Abs", tensor)
    outputs = [add("ReduceMax", magnitude, name=_AMAX + str(value.name), keepdims=0)]
    # Max may ignore NaN; 0 times NaN or infinity is NaN.
    zero = add("Mul", magnitude, constant(np.float32(0)))
    outputs.append(add("ReduceSum", zero, name=_ZERO + str(value.name), keepdims=0))
    if by_channel:
        assert value.shape is not None
        rank = len(value.shape)
        axes = [axis for axis in range(rank) if axis != (1 if "Conv" in reads else rank - 1)]
        outputs.append(add("ReduceMax", magnitude, constant(axes), name=_CHANNELS + str(value.name), keepdims=0))
    graph.extend(nodes)
    for output in outputs:
        output.dtype = ir.DataType.FLOAT
    graph.outputs.extend(outputs)
