"""Measure a graph's tensors on real inputs, on ONNX Runtime, without keeping the tensors.

Added outputs reduce the tensors. ONNX Runtime gets the graph as bytes and reads the weights from their own files,
so nothing is written and no weight is loaded into Python. This module does not know precisions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calotype.system import threads

Feed = Mapping[str, NDArray[Any]]  # the network's inputs in one call
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_AMAX, _ZERO = "calotype.amax.", "calotype.zero."


class Probe:
    """Adds nodes and float32 outputs to a graph in memory. `folder` holds the graph's external data."""

    def __init__(self, model: ir.Model, folder: Path) -> None:
        self._model, self._folder = model, folder
        self._tape = ir.tape.Tape(model.graph)
        self._added: list[str] = []

    @property
    def graph(self) -> ir.Graph:
        """The graph."""
        return self._model.graph

    def op(self, kind: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """Add a node, and return its output."""
        return self._tape.op(kind, inputs, attributes)

    def constant(self, numbers: Any) -> ir.Value:
        """Add a constant: a number, an array or a tensor."""
        return self.op("Constant", value=numbers if isinstance(numbers, ir.Tensor) else ir.tensor(np.asarray(numbers)))

    def output(self, name: str, value: ir.Value) -> None:
        """Make the value an output with this name."""
        value.name, value.dtype = name, ir.DataType.FLOAT
        self.graph.outputs.append(value)
        self._added.append(name)

    def run(self, feeds: Iterable[Feed], names: Sequence[str] | None = None) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield these outputs (None: the added ones) for each feed."""
        session, names = self._session(), names or self._added
        for feed in feeds:
            yield dict(zip(names, session.run(names, dict(feed)), strict=True))

    def _session(self) -> Any:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads.available()
        options.log_severity_level = 3
        # Reduce a tensor as soon as it is computed, then free it: the default order keeps all tensors to the end.
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        options.enable_cpu_mem_arena = False
        # Quantized tensors are computed in floating point, as the graph defines them: a probe measures no speed.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        files = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(files, str(self._folder.absolute()))
        content = ir.to_proto(self._model).SerializeToString()
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def float_values(model: ir.Model) -> dict[str, ir.Value]:
    """Return the floating-point tensors that depend on the graph's inputs, in the order of computation."""
    computed = [output for node in model.graph for output in node.outputs]
    return {v.name: v for v in (*model.graph.inputs, *computed) if v.name and v.dtype in FLOATS}


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Statistics of one tensor over all feeds. `amax` (largest magnitude) is valid only if all numbers are finite."""

    amax: float
    finite: bool


def observe(source: Path, feeds: Iterable[Feed], names: Collection[str] | None = None) -> dict[str, Observed]:
    """Run the graph on every feed and return the statistics of tensors.

    Args:
        names: the tensors; None means all floating-point tensors, inputs included.

    Raises:
        ValueError: a name is not a floating-point input or result of the graph.
    """
    model = ir.load(source)
    values = float_values(model)
    names = list(values if names is None else dict.fromkeys(names))
    if unknown := [name for name in names if name not in values]:
        raise ValueError(f"{source} has no floating-point tensor named {unknown[0]!r} that depends on its inputs.")
    probe = Probe(model, source.parent)
    for name in names:
        value = values[name]
        tensor = value if value.dtype == ir.DataType.FLOAT else probe.op("Cast", value, to=ir.DataType.FLOAT)
        magnitude = probe.op("Abs", tensor)
        probe.output(_AMAX + name, probe.op("ReduceMax", magnitude, keepdims=0))
        # Max may ignore NaN; 0 times NaN or infinity is NaN.
        zero = probe.op("Mul", magnitude, probe.constant(np.float32(0)))
        probe.output(_ZERO + name, probe.op("ReduceSum", zero, keepdims=0))
    amax, finite = dict.fromkeys(names, 0.0), dict.fromkeys(names, True)
    for seen in probe.run(feeds):
        for name in names:
            amax[name] = max(amax[name], float(seen[_AMAX + name]))
            finite[name] &= float(seen[_ZERO + name]) == 0
    return {name: Observed(amax=amax[name], finite=finite[name]) for name in names}
