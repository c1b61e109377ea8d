"""Measure the error of quantizing each part of a network, against the float32 graph, on inputs of real runs.

One group of nodes at a time is quantized, so that groups can be ranked. The errors are those of single calls; the
evaluation of the plan measures the error of an image.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .activation_stats import open_session
from .candidates import candidates
from .quantize import insert_pairs

Arrays = Mapping[str, NDArray[Any]]


def sensitivity(
    source: Path,
    feeds: Sequence[Arrays],
    ranges: Mapping[str, float],
    groups: Mapping[str, Collection[str]],
    *,
    dtype: str = "int8",
) -> dict[str, float]:
    """Return the error of the first output for each quantized group: relative L2, averaged over the feeds."""
    expected = _outputs(ir.load(source), source.parent, feeds)
    names = {candidate.node for candidate in candidates(source)}
    losses = {}
    for group, nodes in groups.items():
        model = ir.load(source)
        insert_pairs(model, ranges, keep=names - set(nodes), dtype=dtype)
        got = _outputs(model, source.parent, feeds)
        losses[group] = float(np.mean([relative_l2(g, e) for g, e in zip(got, expected, strict=True)]))
    return losses


def relative_l2(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the norm of the difference divided by the norm of the reference."""
    reference = expected.astype(np.float64)
    return float(np.linalg.norm(got - reference) / np.linalg.norm(reference))


def _outputs(model: ir.Model, folder: Path, feeds: Sequence[Arrays]) -> list[NDArray[Any]]:
    """Return the first output for every feed."""
    session = open_session(model, folder)
    first = model.graph.outputs[0].name
    return [session.run([first], dict(feed))[0] for feed in feeds]
