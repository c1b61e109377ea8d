"""`python -m calotype.benchmarks.scripts.gpu_questions`: what is cheap to ask of a GPU, before anything is built for
it.

Does TensorRT-RTX accept an engine on it (its targets do not name every GPU)? Does TensorRT make a builder? Does ONNX
Runtime's CUDA provider open a session? What are the measured peaks? Each is asked in a child process, and an answer is
a line of JSON: what a library says, or why it could not be asked. Runs anywhere.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from calotype.doctor import probes as checkup
from calotype.errors import CalotypeError, first_line
from calotype.export.steps.subprocess_task import run_in_subprocess

_RTX_TARGETS = (75, 80, 86, 89, 120, 121)


def rtx(*, target: int) -> dict[str, Any]:
    """In a child: an engine of one node for `target`, and what the runtime says of it on the GPU that is here."""
    from calotype.backends.tensorrt.library import create_log, import_library
    from calotype.export.tensorrt.builder import build_engine
    from calotype.export.tensorrt.options import EngineOptions

    trt, shapes = import_library("tensorrt_rtx"), {"x": ((1,), (1,), (1,))}
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "tiny.onnx"
        graph.write_bytes(checkup.TINY)
        engine = build_engine(trt, graph, [shapes], EngineOptions(targets=(target,))).engine
    if not _has_gpu():
        return {"built_bytes": len(engine), "validity": "not asked: there is no GPU, and a runtime may end the process"}
    log = create_log(trt)
    validity, why = trt.Runtime(log).get_engine_validity(engine)
    return {"built_bytes": len(engine), "validity": str(validity), "why": str(why), "log": log.last_error}


def ort_cuda() -> dict[str, Any]:
    """In a child: does the CUDA provider open and run a tiny model?"""
    return {**checkup.onnxruntime(), "cuda": checkup.provider("CUDAExecutionProvider") or "it runs"}


def builder() -> dict[str, Any]:
    """In a child: does TensorRT make a builder?"""
    return checkup.tensorrt("tensorrt")


def peaks() -> dict[str, Any]:
    """In a child: operations and bytes a second."""
    from ..measure.peaks import peaks_here

    return peaks_here(threads=1, device="cuda")


def gpu() -> dict[str, Any]:
    """In a child: what the driver says."""
    return checkup.gpu()


def answers() -> Mapping[str, Any]:
    """Every question with its answer, or the sentence that says why there is none."""
    found: dict[str, Any] = {"gpu": _asked("gpu")}
    there = "devices" in found["gpu"]
    for target in _RTX_TARGETS if importlib.util.find_spec("tensorrt_rtx") else ():
        found[f"TensorRT-RTX, an engine for {target}"] = _asked("rtx", target=target)
    if "TensorRT-RTX, an engine for 89" not in found:
        found["TensorRT-RTX"] = "not installed (pip install 'calotype[tensorrt-rtx]')"
    there_or = "there is no NVIDIA GPU to ask about"
    found["TensorRT's builder"] = _asked("builder") if there else there_or
    found["ONNX Runtime's CUDA provider"] = _asked("ort_cuda")
    found["peaks"] = _asked("peaks") if there else there_or
    return found


def _asked(name: str, **arguments: Any) -> Any:
    try:
        return run_in_subprocess(
            f"asking {name}", f"calotype.benchmarks.scripts.gpu_questions:{name}", **arguments
        ).value
    except CalotypeError as failed:
        return first_line(failed)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def main(arguments: Sequence[str], show: Callable[[str], None] = print) -> int:
    """The command: a line for each question, and with -o all of them in a file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, help="a JSON file to leave them in")
    said = parser.parse_args(arguments)
    found = answers()
    for question, answer in found.items():
        show(json.dumps({question: answer}))
    if said.output is not None:
        said.output.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
