"""Other weights for an engine that is there: refitting, and the proof that it left no trace.

A LoRA changes weights and no structure, and refitting takes seconds where a build takes minutes. But weights are known
to leave residue on their way out (NVIDIA/TensorRT issue 3628), so an engine is believed only if it computes, after A,
then B, then A again, the very bits that it computed at first. What misses that is to be built anew. Of an engine that
is loaded `calotype.lora.manager` asks that without its LoRAs it computes what it did before the first.

An engine has its weights by names of its own; the ONNX graph that it was built of, which lies beside it, has them by
the model's.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import BackendError
from ...weights.onnx import Stored
from ..onnxruntime.weights import OnnxWeights

if TYPE_CHECKING:
    from ..base import Arrays


class Refittable(Protocol):
    """A runner that shows TensorRT's own objects: the module, the engine, and the log that both write into."""

    @property
    def library(self) -> Any:
        """The module: tensorrt or tensorrt_rtx."""
        ...

    @property
    def engine(self) -> Any:
        """The engine."""
        ...

    @property
    def log(self) -> Any:
        """The log, which keeps the last error."""
        ...

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Run the engine once."""
        ...


def exchanged(runner: Refittable, *, ours: Path, theirs: Path, probe: Arrays) -> bytes:
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


def weights_beside(path: Path, engine: Any, *, backend: str, name: str) -> OnnxWeights:
    """Those of the graph beside the engine's file. Raises `BackendError` where the engine cannot be refitted to it."""
    graph = next(path.parent.glob("*.onnx"), None)
    if graph is None or not engine.refittable:
        raise BackendError(
            f"the {backend} engine of the {name} was not built to be refitted; build a plan whose engines are "
            f"(calotype build MODEL --backend {backend} --engine refit), or one with the LoRA in it (--lora FILE)."
        )
    return OnnxWeights(graph)


def refit(runner: Refittable, graph: Path, changed: Iterable[tuple[Stored, NDArray[np.generic]]] = ()) -> None:
    """Give the engine the weights of a graph of its own structure, these in place of the graph's own.

    Nothing may run meanwhile. Raises `BackendError`.
    """
    trt: Any = runner.library
    refitter = trt.Refitter(runner.engine, runner.log)
    reader = trt.OnnxParserRefitter(refitter, runner.log)
    values = [(stored.initializer, np.ascontiguousarray(value)) for stored, value in changed]  # outlive the reader
    taken = (
        reader.load_model_proto(graph.read_bytes(), str(graph))
        and all(reader.load_initializer(name, value.ctypes.data, value.nbytes) for name, value in values)
        and reader.refit_model_proto()
        and refitter.refit_cuda_engine()
    )
    if not taken:
        raise BackendError(f"TensorRT does not refit the engine to {graph}: {runner.log.told or 'it does not say why'}")
