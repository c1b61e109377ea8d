"""Calibrate the range of each tensor that may be quantized, and rank parts of a network by their quantization error.

A range below the largest magnitude saturates a few numbers and represents all others more finely. Calibration tries
a few shares of that magnitude and takes the one with the smallest squared error. Both functions use the inputs of real
runs. The errors are those of single calls; the evaluation of the plan measures the error of an image.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calotype.errors import CheckError

from ..onnx.check import relative_l2
from .activation_stats import Feed, Probe, float_values, observe
from .candidates import candidates
from .quantize import FORMATS, insert_pairs

# No lower shares: the few numbers that are cut may be decisive. On the demonstration model these shares lower the
# U-Net's loss by a fifth, on average and at worst; percentiles, and the smallest error of all, raise the worst case.
SHARES = (1.0, 0.95, 0.9, 0.85, 0.8)


def calibrate(source: Path, feeds: Sequence[Feed], dtype: str = "int8") -> dict[str, float]:
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
    source: Path, feeds: Sequence[Feed], amax: Mapping[str, float], dtype: str
) -> dict[str, NDArray[np.float64]]:
    """Return the squared error of a Q/DQ pair on each tensor, summed over the feeds, for each of `SHARES`."""
    model, form = ir.load(source), FORMATS[dtype]
    probe, values = Probe(model, source.parent), float_values(model)
    zero = probe.constant(ir.Tensor(np.asarray(form.zero).astype(form.activation.numpy())))
    for name, largest in amax.items():
        value = values[name]
        kind = (value.dtype or ir.DataType.FLOAT).numpy()
        for share in SHARES:
            scale = probe.constant(np.asarray((largest or 1.0) * share / form.largest).astype(kind))
            restored = probe.op("DequantizeLinear", probe.op("QuantizeLinear", value, scale, zero), scale, zero)
            difference = probe.op("Cast", probe.op("Sub", restored, value), to=ir.DataType.FLOAT)
            probe.output(f"calotype.error.{share}.{name}", probe.op("ReduceSumSquare", difference, keepdims=0))
    sums = np.zeros((len(amax), len(SHARES)))
    for errors in probe.run(feeds):
        sums += np.reshape(list(errors.values()), sums.shape)
    return dict(zip(amax, sums, strict=True))


def sensitivity(
    source: Path,
    feeds: Sequence[Feed],
    ranges: Mapping[str, float],
    groups: Mapping[str, Collection[str]],
    *,
    dtype: str = "int8",
) -> dict[str, float]:
    """Return the error of the first output if one group alone is quantized: relative L2, averaged over the feeds."""
    expected = _outputs(ir.load(source), source.parent, feeds)
    names = {candidate.node for candidate in candidates(source)}
    losses = {}
    for group, nodes in groups.items():
        model = ir.load(source)
        insert_pairs(model, ranges, keep=names - set(nodes), dtype=dtype)
        got = _outputs(model, source.parent, feeds)
        losses[group] = float(np.mean([relative_l2(g, e) for g, e in zip(got, expected, strict=True)]))
    return losses


def _outputs(model: ir.Model, folder: Path, feeds: Sequence[Feed]) -> list[NDArray[np.float32]]:
    """Return the first output for every feed."""
    first = str(model.graph.outputs[0].name)
    return [seen[first] for seen in Probe(model, folder).run(feeds, [first])]
