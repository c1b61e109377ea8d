"""Calibrate the range of each tensor that may be quantized, on the inputs of real runs.

A range below the largest magnitude saturates a few numbers and represents all others more finely. Calibration tries
a few shares of that magnitude and takes the one with the smallest squared error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calotype.errors import CheckError

from .activation_stats import float_values, observe, open_session
from .candidates import candidates
from .quantize import FORMATS

Arrays = Mapping[str, NDArray[Any]]

# No lower shares: the few numbers that are cut may be decisive. On the demonstration model these shares lower the
# U-Net's loss by a fifth, on average and at worst; percentiles, and the smallest error of all, raise the worst case.
SHARES = (1.0, 0.95, 0.9, 0.85, 0.8)


def calibrate(source: Path, feeds: Sequence[Arrays], dtype: str = "int8") -> dict[str, float]:
    """Return the magnitudes for `quantize` of all inputs and outputs of candidates. Runs the feeds once or twice.

    Raises:
        CheckError: a tensor has a value that is not finite.
    """
    names = list(dict.fromkeys(name for c in candidates(source) for name in (c.reads, c.gives)))
    seen = observe(source, feeds, names)
    broken = [name for name in names if not seen[name].finite]
    if broken:
        raise CheckError(f"cannot calibrate {broken[0]}: it has values that are not finite. Keep its nodes in float32.")
    amax = {name: seen[name].amax for name in names}
    if dtype == "fp8":  # a floating-point type: measurements show no gain from a smaller range
        return amax
    errors = _squared_errors(source, feeds, amax, dtype)
    return {name: amax[name] * SHARES[int(np.argmin(errors[name]))] for name in names}


def _squared_errors(
    source: Path, feeds: Sequence[Arrays], amax: Mapping[str, float], dtype: str
) -> dict[str, NDArray[np.float64]]:
    """Return the squared error of a Q/DQ pair on each tensor, summed over the feeds, for each of `SHARES`."""
    model = ir.load(source)
    values = float_values(model)
    for name, largest in amax.items():
        for i, share in enumerate(SHARES):
            _measure(model.graph, values[name], (largest or 1.0) * share, dtype, f"{_ERROR}{i}.{name}")
    session = open_session(model, source.parent)
    sums = {name: np.zeros(len(SHARES)) for name in amax}
    outputs = [output.name for output in model.graph.outputs if str(output.name).startswith(_ERROR)]
    for feed in feeds:
        got = session.run(outputs, dict(feed))
        for name, errors in zip(amax, np.reshape(got, (-1, len(SHARES))), strict=True):
            sums[name] += errors
    return sums


_ERROR = "calotype.error."


def _measure(graph: ir.Graph, value: ir.Value, top: float, dtype: str, name: str) -> None:
    """Add the squared error of a Q/DQ pair on this tensor to the graph's outputs."""
    form = FORMATS[dtype]
    nodes: list[ir.Node] = []

    def add(op: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        nodes.append(ir.node(op, inputs, attributes))
        return nodes[-1].outputs[0]

    kind = (value.dtype or ir.DataType.FLOAT).numpy()
    scale = add("Constant", value=ir.tensor(np.asarray(top / form.largest).astype(kind)))
    zero = add("Constant", value=ir.Tensor(np.asarray(form.zero).astype(form.activation.numpy())))
    restored = add("DequantizeLinear", add("QuantizeLinear", value, scale, zero), scale, zero)
    difference = add("Cast", add("Sub", restored, value), to=ir.DataType.FLOAT)
    error = add("ReduceSumSquare", difference, keepdims=0)
    error.name, error.dtype = name, ir.DataType.FLOAT
    graph.extend(nodes)
    graph.outputs.append(error)
