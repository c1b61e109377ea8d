"""What does quantizing a part of a network cost? Its output against the float32 graph's, on inputs of real runs.

One group of nodes at a time, all others in float32, so that the figures can be ranked. They are of single calls; what a
whole picture loses is for the gate to measure.
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
    """By group: how far the first output moves, in relative L2 averaged over the feeds, with its nodes quantized."""
    wanted = _outputs(ir.load(source), source.parent, feeds)
    names = {candidate.node for candidate in candidates(source)}
    losses = {}
    for group, nodes in groups.items():
        model = ir.load(source)
        insert_pairs(model, ranges, keep=names - set(nodes), dtype=dtype)
        got = _outputs(model, source.parent, feeds)
        losses[group] = float(np.mean([relative_l2(g, w) for g, w in zip(got, wanted, strict=True)]))
    return losses


def relative_l2(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Length of the difference over the length of the reference."""
    reference = wanted.astype(np.float64)
    return float(np.linalg.norm(got - reference) / np.linalg.norm(reference))


def _outputs(model: ir.Model, folder: Path, feeds: Sequence[Arrays]) -> list[NDArray[Any]]:
    """The first output for every feed."""
    session = open_session(model, folder)
    first = model.graph.outputs[0].name
    return [session.run([first], dict(feed))[0] for feed in feeds]
