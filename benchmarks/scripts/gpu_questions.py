"""Cheap checks of a GPU before anything is built for it: `python -m calotype.benchmarks.scripts.gpu_questions`.

Does TensorRT-RTX accept an engine on it (its targets do not name every GPU)? Does TensorRT make a builder? Does ONNX
Runtime's CUDA provider open a session? What are the measured peaks? Each check runs in a child process and prints a
line of JSON: the library's answer, or why there is none. Runs on any machine.
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

from calotype.doctor import probes
from calotype.errors import CalotypeError, first_line
from calotype.export.steps.subprocess_task import run_in_subprocess

_RTX_TARGETS = (75, 80, 86, 89, 120, 121)


def rtx(*, target: int) -> dict[str, Any]:
    """Build an engine of one node for `target`, and check it on this GPU. Runs in a child process."""
    from calotype.backends.tensorrt.library import create_log, import_library
    from calotype.export.tensorrt.builder import build_engine
    from calotype.export.tensorrt.options import EngineOptions

    trt, shapes = import_library("tensorrt_rtx"), {"x": ((1,), (1,), (1,))}
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "tiny.onnx"
        graph.write_bytes(probes.TINY)
        engine = build_engine(trt, graph, [shapes], EngineOptions(targets=(target,))).engine
    if not _has_gpu():
        return {"built_bytes": len(engine), "validity": "not checked: without a GPU, the runtime may end the process"}
    log = create_log(trt)
    validity, why = trt.Runtime(log).get_engine_validity(engine)
    return {"built_bytes": len(engine), "validity": str(validity), "why": str(why), "log": log.message}


def ort_cuda() -> dict[str, Any]:
    """Open and run a tiny model with the CUDA provider. Runs in a child process."""
    return {**probes.onnxruntime(), "cuda": probes.provider("CUDAExecutionProvider") or "it runs"}


def builder() -> dict[str, Any]:
    """Create a builder of TensorRT. Runs in a child process."""
    return probes.tensorrt("tensorrt")


def peaks() -> dict[str, Any]:
    """Return the peaks in operations and bytes a second. Runs in a child process."""
    from ..measure.peaks import peaks_here

    return peaks_here(threads=1, device="cuda")


def gpu() -> dict[str, Any]:
    """Return the driver's description of the GPU. Runs in a child process."""
    return probes.gpu()


def answers() -> Mapping[str, Any]:
    """Return every check with its answer, or the reason why there is none."""
    results: dict[str, Any] = {"gpu": _ask("gpu")}
    has_gpu = "devices" in results["gpu"]
    for target in _RTX_TARGETS if importlib.util.find_spec("tensorrt_rtx") else ():
        results[f"TensorRT-RTX, an engine for {target}"] = _ask("rtx", target=target)
    if "TensorRT-RTX, an engine for 89" not in results:
        results["TensorRT-RTX"] = "not installed (pip install 'calotype[tensorrt-rtx]')"
    no_gpu = "there is no NVIDIA GPU"
    results["TensorRT's builder"] = _ask("builder") if has_gpu else no_gpu
    results["ONNX Runtime's CUDA provider"] = _ask("ort_cuda")
    results["peaks"] = _ask("peaks") if has_gpu else no_gpu
    return results


def _ask(name: str, **arguments: Any) -> Any:
    try:
        return run_in_subprocess(
            f"checking {name}", f"calotype.benchmarks.scripts.gpu_questions:{name}", **arguments
        ).value
    except CalotypeError as failed:
        return first_line(failed)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def main(arguments: Sequence[str], show: Callable[[str], None] = print) -> int:
    """Run the command: print a line for each check. `-o` also writes all of them to a file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, help="a JSON file for the answers")
    options = parser.parse_args(arguments)
    results = answers()
    for question, answer in results.items():
        show(json.dumps({question: answer}))
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
