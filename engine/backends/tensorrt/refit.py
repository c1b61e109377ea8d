"""Refits an engine with other weights, and checks that the old weights left no trace.

A LoRA changes weights but not the structure, and a refit takes seconds where a build takes minutes. But old weights can
leave residue (NVIDIA/TensorRT issue 3628). So a refit to weights B is valid only if the engine, refitted back to A,
computes the same bits as before. Otherwise the engine must be built again. For a loaded engine, `calotype.lora.manager`
checks that without LoRAs it computes what it did before the first LoRA.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...errors import BackendError
from ..base import Arrays
from .runner import TensorRtRunner


def refitted_engine(runner: TensorRtRunner, *, ours: Path, theirs: Path, probe: Arrays) -> bytes:
    """Return the serialized engine with the weights of the graph `theirs`, and refit the runner back to `ours`.

    Args:
        runner: has an engine with the weights of `ours`.
        ours, theirs: ONNX graphs of the same structure.
        probe: inputs for the check.

    Raises:
        BackendError: a refit failed, or left residue of other weights.
    """
    before = runner(probe)
    runner.refit(theirs)
    engine, other = bytes(runner.engine.serialize()), runner(probe)
    if all(np.array_equal(array, other[name], equal_nan=True) for name, array in before.items()):
        message = "the refit had no effect: the engine computes what it did without the new weights"
        raise BackendError(message, backend=runner.backend)
    runner.refit(ours)
    after = runner(probe)
    off = sorted(name for name, array in before.items() if not np.array_equal(array, after[name], equal_nan=True))
    if off:
        raise BackendError(
            f"the refit left residue: after a refit to the old weights, the engine computes another {', '.join(off)}",
            backend=runner.backend,
        )
    return engine
