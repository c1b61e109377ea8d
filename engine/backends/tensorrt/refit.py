"""Refits an engine with other weights, and checks that the old weights left no trace.

A LoRA changes weights but not the structure, and a refit takes seconds where a build takes minutes. But old weights can
leave residue (NVIDIA/TensorRT issue 3628). So a refit to weights B is valid only if the engine, refitted back to A,
computes the same bits as before. Otherwise the engine must be built again. For a loaded engine, `calotype.lora.manager`
checks that without LoRAs it computes what it did before the first LoRA.

An engine has its own names for weights. The ONNX graph in the engine's folder, from which it was built, has the model's
names.
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
    """A runner that exposes TensorRT's objects: the module, the engine, and the log of both."""

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
        """The log, which stores the last error."""
        ...

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Run the engine once."""
        ...


def refitted_engine(runner: Refittable, *, ours: Path, theirs: Path, probe: Arrays) -> bytes:
    """Return the serialized engine with the weights of the graph `theirs`, and refit the runner back to `ours`.

    Args:
        runner: has an engine with the weights of `ours`.
        ours, theirs: ONNX graphs of the same structure.
        probe: inputs for the check.

    Raises:
        BackendError: a refit failed, or left residue of other weights.
    """
    before = runner(probe)
    refit(runner, theirs)
    engine, other = bytes(runner.engine.serialize()), runner(probe)
    if all(np.array_equal(array, other[name], equal_nan=True) for name, array in before.items()):
        raise BackendError("the refit had no effect: the engine computes what it did without the new weights")
    refit(runner, ours)
    after = runner(probe)
    off = sorted(name for name, array in before.items() if not np.array_equal(array, after[name], equal_nan=True))
    if off:
        raise BackendError(
            f"the refit left residue: after a refit back, the engine's {', '.join(off)} is not what it was"
        )
    return engine


def refit_weights(path: Path, engine: Any, *, backend: str, name: str) -> OnnxWeights:
    """Return the weights of the graph in the engine's folder. Raise `BackendError` if the engine cannot be refitted."""
    graph = next(path.parent.glob("*.onnx"), None)
    if graph is None or not engine.refittable:
        raise BackendError(
            f"the {backend} engine of the {name} was not built for refits. Build a plan whose engines are "
            f"(calotype build MODEL --backend {backend} --engine refit), or one with the LoRA in it (--lora FILE)."
        )
    return OnnxWeights(graph)


def refit(runner: Refittable, graph: Path, changed: Iterable[tuple[Stored, NDArray[np.generic]]] = ()) -> None:
    """Set the engine's weights to those of a graph of the same structure, with the `changed` ones replaced.

    The caller makes sure that nothing runs meanwhile.

    Raises:
        BackendError: TensorRT refused the weights.
    """
    trt: Any = runner.library
    refitter = trt.Refitter(runner.engine, runner.log)
    reader = trt.OnnxParserRefitter(refitter, runner.log)
    values = [(stored.initializer, np.ascontiguousarray(value)) for stored, value in changed]  # must outlive the reader
    accepted = (
        reader.load_model_proto(graph.read_bytes(), str(graph))
        and all(reader.load_initializer(name, value.ctypes.data, value.nbytes) for name, value in values)
        and reader.refit_model_proto()
        and refitter.refit_cuda_engine()
    )
    if not accepted:
        raise BackendError(
            f"TensorRT cannot refit the engine to {graph}: {runner.log.last_error or 'it gave no reason'}"
        )
