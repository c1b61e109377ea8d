"""Make lower-precision artifacts of a component in child processes, and keep them in the store.

`half_convert` makes fp16 and bf16, `quantize` int8 and fp8. This module has the store keys and the precisions of each
backend (OpenVINO computes the float32 file in bf16). `tuning` chooses the precision.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from calotype.backends import COMPILED, ON_GPU, unsupported
from calotype.errors import BuildError
from calotype.files.digest import file_digest
from calotype.plan.plan import Artifact, PlannedComponent

from ..onnx.capture import evenly, read_calls
from ..steps.stored_step import StoredStep
from ..steps.versions import tool_versions
from ..store.folders import digests_of
from ..store.store import Stored
from ..tensorrt.engines import Engines

LOWERING = 1  # increment when a lowered graph changes for the same inputs
_ISLAND_CALLS = 6  # calls of a recording that the search for islands uses
_CALIBRATION_CALLS = 256
_SENSITIVITY_CALLS = 6

# backend -> precision -> why the build does not support it
_OWN = "the cuda backend supports only fp32, fp16 and bf16. Use one of these, or --backend tensorrt"
_ORT = "ONNX Runtime on a GPU supports only fp32 and fp16. Use one of these, or --backend tensorrt"
_REFUSED = {
    "cuda": dict.fromkeys(("int8", "fp8"), _OWN),
    "onnxruntime-cuda": dict.fromkeys(("bf16", "int8", "fp8"), _ORT),
    "onnxruntime": {
        "bf16": "ONNX Runtime does not support bf16 on a CPU. Use --backend openvino, or --precision fp16 or int8"
    },
    "openvino": {"fp8": "OpenVINO does not support fp8 on a CPU. Use --precision bf16 or int8"},
}


def check_precision(backend: str, precision: str) -> None:
    """Raise `BuildError` with the alternatives if the backend, or this machine, does not support the precision."""
    if reason := _REFUSED.get(backend, {}).get(precision):
        raise BuildError(f"{reason}.", backend=backend)
    if reason := unsupported(backend, precision):
        raise BuildError(
            f"a build tests the plan, and {backend} cannot run {precision} here: {reason}. Use --precision fp32, int8 "
            "or auto, or build on a machine that supports it.",
            backend=backend,
            hint="--precision auto",
        )


# What `--precision auto` tries; int8 on other backends. On a GPU, nodes not in int8 or fp8 are in half precision.
_AUTO = {
    "openvino": ("bf16", "int8", "int8+bf16"),
    "cuda": ("fp16", "bf16"),
    "onnxruntime-cuda": ("fp16",),
    **dict.fromkeys(COMPILED, ("fp16", "bf16", "int8+fp16", "fp8+fp16")),
}


def tuned_as(precision: str, backend: str) -> tuple[str, ...]:
    """Return the precisions to try for the requested one, of those that run here.

    TensorRT combines int8 and fp8 with fp16, not float32.
    """
    if precision == "auto":
        return tuple(each for each in _AUTO.get(backend, ("int8",)) if unsupported(backend, each) is None)
    return (f"{precision}+fp16",) if backend in COMPILED else (precision,)


def not_tried(backend: str) -> dict[str, str]:
    """Return the precisions that `auto` does not try, with the reasons: rows of the plan's table."""
    refused = _REFUSED.get(backend, {})
    if backend in ON_GPU:
        return dict(refused)
    return {
        "fp16": "on a CPU fp16 saves disk, not time",
        **refused,
        **({} if backend == "openvino" else {"fp8": "no CPU computes in fp8"}),
        **{each: reason for each in ("bf16",) if (reason := unsupported(backend, each))},
    }


@dataclass(frozen=True, kw_only=True)
class Part:
    """A component, the artifact that others are made from, and the recording of its calls.

    `engines` compiles graphs for the backend; None if the backend opens graphs.
    """

    component: PlannedComponent
    traced: Artifact
    recording: Path
    engines: Engines | None = None

    @property
    def name(self) -> str:
        """The component's name."""
        return self.component.name

    @property
    def graph(self) -> list[str]:
        """The digests of the traced graph's files, for keys."""
        return digests_of(self.traced.path)


def half(part: Part, precision: str, backend: str) -> Artifact:
    """Return the component in fp16 or bf16. Raise `BuildError` if it cannot be made."""
    if computed_from_float32(precision, backend):
        return replace(part.traced, precision=precision, check={})  # the same file, computed in another type
    return _compiled(part, _halved(part, precision))


def computed_from_float32(precision: str, backend: str) -> bool:
    """Return whether the backend computes in half precision from float32 files, so that nothing is converted."""
    return (backend, precision) == ("openvino", "bf16") or (backend == "cuda" and precision in ("bf16", "fp16"))


def _halved(part: Part, precision: str) -> Artifact:
    return _lowered(part, "halve", precision, {"precision": precision, "recording": str(part.recording)})


def quantized(part: Part, ranges: Path, keep: Collection[str], precision: str, backend: str) -> Artifact:
    """Return the component with int8 or fp8 Q/DQ pairs at all candidate nodes except `keep`.

    "int8+fp16" puts the other nodes in half precision: in the graph if the backend compiles it, else at run time.
    """
    dtype, _, rest = precision.partition("+")
    arguments: dict[str, Any] = {"ranges": str(ranges), "keep": sorted(keep), "form": form_for(dtype, backend)}
    if rest and backend in COMPILED:
        part = replace(part, traced=_halved(part, rest))
        arguments["half"] = rest
    return _compiled(part, _lowered(part, "quantize", dtype, arguments))


def small_weights(part: Part, weights: str) -> Artifact:
    """Return the component with only its weights in "int8" or "int4"."""
    artifact = _lowered(part, "shrink", f"fp32, {weights} weights", {"bits": int(weights[3:])})
    return _compiled(part, replace(artifact, precision="fp32", check={**artifact.check, "weights": weights}))


def _compiled(part: Part, graph: Artifact) -> Artifact:
    """Return the artifact that the backend opens: the graph, or its engine."""
    return graph if part.engines is None else part.engines.of(part.component, graph)


def _lowered(part: Part, function: str, precision: str, arguments: Mapping[str, Any]) -> Artifact:
    label = {"kind": "artifact", "precision": precision}
    stored = _stored(part, f"making the {part.name} {precision}", function, label, arguments)
    path = stored.folder / "model.onnx"
    return Artifact(form="onnx", path=path, precision=precision, check={"lowering": stored.notes})


def _stored(part: Part, task: str, function: str, label: Mapping[str, str], arguments: Mapping[str, Any]) -> Stored:
    """Return what a function of this module makes of the part's graph in a child process."""
    files = {k: file_digest(Path(v)) if k in ("recording", "ranges") else v for k, v in arguments.items()}
    step = StoredStep(
        depends_on={"lowering": LOWERING, "what": function, "graph": part.graph, "tools": tool_versions(), **files},
        label={"component": part.name, **label},
    )
    return step.run_in_child(task, f"{__name__}:{function}", source=str(part.traced.path), **arguments)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Nodes that are quantized or kept together. `loss` is the output's relative L2 if only this group is quantized."""

    name: str
    nodes: tuple[str, ...]
    loss: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The file with the ranges of activations over a recording, and the groups, the most sensitive first."""

    ranges: Path
    groups: Sequence[Group]


def calibrated(part: Part, dtype: str, backend: str) -> Calibration:
    """Return the calibration of the part's graph over its recording."""
    arguments = {"form": form_for(dtype, backend), "recording": str(part.recording)}
    label = {"kind": "calibration", "precision": dtype}
    folder = _stored(part, f"calibrating the {part.name}", "calibrate", label, arguments).folder
    groups = json.loads((folder / "groups.json").read_text())
    return Calibration(
        ranges=folder / "ranges.json", groups=[Group(**{**g, "nodes": tuple(g["nodes"])}) for g in groups]
    )


def form_for(dtype: str, backend: str) -> str:
    """Return the eight-bit format: uint8 for int8 on ONNX Runtime, which is fast only with unsigned activations."""
    return "uint8" if (dtype, backend) == ("int8", "onnxruntime") else dtype


# The functions below run in a child process.


def halve(*, source: str, out: str, precision: str, recording: str) -> dict[str, Any]:
    """Find islands on real inputs, then lower the graph."""
    from .half_convert import lower
    from .keep_fp32 import find_islands

    feeds = [c.inputs for c in evenly(read_calls(Path(recording)), _ISLAND_CALLS)]
    islands = find_islands(Path(source), feeds, precision=precision)
    return asdict(lower(Path(source), Path(out, "model.onnx"), precision=precision, islands=islands))


def shrink(*, source: str, out: str, bits: int) -> dict[str, Any]:
    """Store the weights in fewer bits."""
    from .weight_only import weight_only

    return asdict(weight_only(Path(source), Path(out, "model.onnx"), bits=bits))


def calibrate(*, source: str, recording: str, out: str, form: str) -> None:
    """Write `ranges.json` and `groups.json` to `out`."""
    from .calibrate import calibrate, sensitivity
    from .candidates import candidates

    calls = read_calls(Path(recording))
    ranges = calibrate(Path(source), [c.inputs for c in evenly(calls, _CALIBRATION_CALLS)], form)
    blocks: dict[str, list[str]] = {}
    for candidate in candidates(Path(source)):
        blocks.setdefault(candidate.block, []).append(candidate.node)
    some = [c.inputs for c in evenly(calls, _SENSITIVITY_CALLS)]
    losses = sensitivity(Path(source), some, ranges, blocks, dtype=form)
    groups = [{"name": b, "nodes": blocks[b], "loss": losses[b]} for b in sorted(blocks, key=lambda b: -losses[b])]
    Path(out, "ranges.json").write_text(json.dumps(ranges))
    Path(out, "groups.json").write_text(json.dumps(groups))


def quantize(
    *, source: str, out: str, ranges: str, keep: Sequence[str], form: str, half: str | None = None
) -> dict[str, Any]:
    """Write the Q/DQ graph of a graph in float32, or in `half` precision."""
    from .quantize import quantize

    magnitudes = json.loads(Path(ranges).read_text())
    if half is not None:  # the ranges are those of float32 tensors, some of which have other names in half precision
        magnitudes |= {f"{name}.{half}": value for name, value in magnitudes.items()}
    report = quantize(Path(source), Path(out, "model.onnx"), ranges=magnitudes, keep=keep, dtype=form)
    return {"quantized": len(report.quantized), "kept": len(report.kept), "bytes": report.size_bytes}
