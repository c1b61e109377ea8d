"""Other weights for an engine that is there: refitting, and the proof that it left no trace.

A LoRA changes weights and no structure, and refitting takes seconds where a build takes minutes. But weights are known
to leave residue on their way out (NVIDIA/TensorRT issue 3628), so an engine is believed only if it computes, after A,
then B, then A again, the very bits that it computed at first. What misses that is to be built anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calotype.backends.trt import TrtRunner
from calotype.errors import BackendError

if TYPE_CHECKING:
    from calotype.backends import Arrays


def exchanged(runner: TrtRunner, *, ours: Path, theirs: Path, probe: Arrays) -> bytes:
    """The engine with the weights of the graph `theirs`, as a file holds it; the runner has those of `ours` again.

    Both graphs are of one structure. Raises `BackendError` where an exchange fails or leaves a trace.
    """
    before = runner(probe)
    refit(runner, theirs)
    made, other = bytes(runner.engine.serialize()), runner(probe)
    if all(np.array_equal(array, other[name], equal_nan=True) for name, array in before.items()):
        raise BackendError("TensorRT took other weights for the engine, and it computes what it did without them")
    refit(runner, ours)
    after = runner(probe)
    off = sorted(name for name, array in before.items() if not np.array_equal(array, after[name], equal_nan=True))
    if off:
        raise BackendError(f"refitted to other weights and back, the engine's {', '.join(off)} is not what it was")
    return made


def refit(runner: TrtRunner, graph: Path) -> None:
    """Give the engine the weights of a graph of its own structure. Raises `BackendError`."""
    trt: Any = runner.library
    refitter = trt.Refitter(runner.engine, runner.log)
    reader = trt.OnnxParserRefitter(refitter, runner.log)
    if not reader.refit_from_file(str(graph)) or not refitter.refit_cuda_engine():
        raise BackendError(f"TensorRT does not refit the engine to {graph}: {runner.log.told or 'it does not say why'}")
