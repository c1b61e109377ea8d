"""Is an artefact the network it was made from? Held against the eager float32 module before it may be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from calotype.backends.ort import open_runner
from calotype.errors import BackendError, CheckError
from calotype.export.trace import sample_inputs
from calotype.family import Component
from calotype.plan import Artefact, PlannedComponent

TOLERANCE = 1e-4  # of the largest value of each output


def relative_error(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Largest difference over largest magnitude of the reference; infinite where a number is not finite."""
    difference = float(np.abs(got.astype(np.float64) - wanted).max())
    scale = float(np.abs(wanted).max())
    return difference / max(scale, 1e-12) if np.isfinite(difference) else float("inf")


def check_onnx(
    component: Component, module: nn.Module, path: Path, several_sizes: Sequence[Mapping[str, int]]
) -> dict[str, Any]:
    """Run ONNX Runtime and eager at these sizes; the figures for the plan. Raises `CheckError` past the tolerance."""
    import torch

    artefact = Artefact(form="onnx", path=path, precision="fp32", check={})
    planned = PlannedComponent(
        name=component.name, inputs=component.inputs, outputs=component.outputs, artefacts=(artefact,), refused={}
    )
    try:
        runner = open_runner(planned, artefact)
    except BackendError as failed:
        raise CheckError(f"the traced {component.name} cannot be opened: {failed}") from None
    worst = 0.0
    for seed, sizes in enumerate(several_sizes, start=1):
        inputs = sample_inputs(component, sizes, seed)
        with torch.inference_mode():
            wanted = module(**inputs)
        got = runner({name: tensor.numpy() for name, tensor in inputs.items()})
        worst = max(
            [worst, *(relative_error(got[b.name], w.numpy()) for b, w in zip(component.outputs, wanted, strict=True))]
        )
    if worst > TOLERANCE:
        raise CheckError(
            f"the traced {component.name} differs from eager float32 by {worst:.1e} of its largest value "
            f"(allowed: {TOLERANCE:.0e}), so it is not used"
        )
    return {"max_relative_error": worst, "tolerance": TOLERANCE, "sizes": [dict(s) for s in several_sizes]}
