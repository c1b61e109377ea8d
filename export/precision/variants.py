"""Lower precisions of a traced component: made in child processes, found again in the store.

fp16 and bf16 are `lower`'s work, int8 and fp8 `quantize`'s; here is what each depends on, which backend can run what,
and that openvino takes bf16 as a way to compute and not as a file. Which precision is worth having is `tuning`'s.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from calotype.backends import COMPILED, ON_GPU
from calotype.errors import BuildError
from calotype.files.digest import file_digest
from calotype.plan.plan import Artifact, PlannedComponent

from ..onnx.capture import evenly, read_calls
from ..steps.subprocess_task import run_in_subprocess
from ..steps.versions import tool_versions
from ..store.folders import digests_of
from ..store.store import fetch, key_of
from ..tensorrt.engines import Engines

LOWERING = 1  # raised when a lowered graph changes for the same inputs
_ISLAND_CALLS = 6  # of a recording that islands are looked for in
_CALIBRATION_CALLS = 256
_SENSITIVITY_CALLS = 6

# backend -> precision -> why it cannot be built for it
_OWN = "the cuda backend runs a model's own networks in fp32, fp16 or bf16; take one of these, or --backend tensorrt"
_ORT = "ONNX Runtime is given fp32 and fp16 on a GPU; take one of these, or --backend tensorrt"
_REFUSED = {
    "cuda": dict.fromkeys(("int8", "fp8"), _OWN),
    "onnxruntime-cuda": dict.fromkeys(("bf16", "int8", "fp8"), _ORT),
    "onnxruntime": {
        "bf16": "ONNX Runtime computes nothing in bf16 on a CPU; take --backend openvino, or --precision fp16 or int8",
    },
    "openvino": {
        "fp8": "OpenVINO computes nothing in fp8 on a CPU; take --precision bf16 or int8",
    },
}


def check_precision(backend: str, precision: str) -> None:
    """`BuildError` where the backend does not run the precision, with what it does."""
    reason = _REFUSED.get(backend, {}).get(precision)
    if reason:
        raise BuildError(f"{reason}.")


# What `--precision auto` tries: on a GPU what is not int8 or fp8 is in half precision.
_TRIED = {
    "openvino": ("bf16", "int8", "int8+bf16"),
    "cuda": ("fp16", "bf16"),
    "onnxruntime-cuda": ("fp16",),
    **dict.fromkeys(COMPILED, ("fp16", "bf16", "int8+fp16", "fp8+fp16")),
}


def tried_by_auto(backend: str) -> tuple[str, ...]:
    """The precisions that `--precision auto` tries on this backend."""
    return _TRIED.get(backend, ("int8",))


def tuned_as(precision: str, backend: str) -> tuple[str, ...]:
    """The precisions that are tuned for what was asked for: TensorRT has int8 and fp8 among halves, not float32."""
    if precision == "auto":
        return tried_by_auto(backend)
    return (f"{precision}+fp16",) if backend in COMPILED else (precision,)


def not_tried(backend: str) -> dict[str, str]:
    """The precisions that `auto` does not try, and why: rows of the plan's table."""
    if backend in ON_GPU:
        return dict(_REFUSED.get(backend, {}))
    halves = {"fp16": "on a CPU fp16 saves disk, not time"}
    return {
        **halves,
        **_REFUSED.get(backend, {}),
        **({} if backend == "openvino" else {"fp8": "no CPU computes in fp8"}),
    }


@dataclass(frozen=True, kw_only=True)
class Part:
    """A component as its backend's artifacts are made from it, and what real runs give it.

    `engines` makes of a graph what the backend opens; None where it opens graphs.
    """

    component: PlannedComponent
    traced: Artifact
    recording: Path
    engines: Engines | None = None

    @property
    def name(self) -> str:
        """The component's."""
        return self.component.name

    @property
    def graph(self) -> list[str]:
        """What the traced graph is, for keys."""
        return digests_of(self.traced.path)


def half(part: Part, precision: str, backend: str) -> Artifact:
    """The component in fp16 or bf16. Raises `BuildError` where it cannot be made."""
    if (backend, precision) == ("openvino", "bf16") or backend == "cuda":
        return replace(part.traced, precision=precision, check={})  # the same file, computed in another type
    return _finished(part, _halved(part, precision))


def _halved(part: Part, precision: str) -> Artifact:
    arguments = {"precision": precision, "recording": str(part.recording)}
    return _made(part, "calotype.export.precision.variants:halve", precision, arguments)


def quantized(part: Part, ranges: Path, keep: Collection[str], precision: str, backend: str) -> Artifact:
    """The component with Q/DQ pairs in int8 or fp8 at all nodes that can have them but those in `keep`.

    "int8+fp16": the rest in half precision, where the backend takes that from the graph; else by its own means.
    """
    dtype, _, rest = precision.partition("+")
    arguments = {"ranges": str(ranges), "keep": sorted(keep), "form": form_for(dtype, backend)}
    if rest and backend in COMPILED:
        part = replace(part, traced=_halved(part, rest))
        arguments["half"] = rest
    return _finished(part, _made(part, "calotype.export.precision.variants:quantize", dtype, arguments))


def _finished(part: Part, graph: Artifact) -> Artifact:
    """What the backend opens."""
    return graph if part.engines is None else part.engines.of(part.component, graph)


def small_weights(part: Part, weights: str) -> Artifact:
    """The component with its weights alone in "int8" or "int4"."""
    artifact = _made(
        part, "calotype.export.precision.variants:shrink", f"fp32, {weights} weights", {"bits": int(weights[3:])}
    )
    artifact = replace(artifact, precision="fp32", check={**artifact.check, "weights": weights})
    return _finished(part, artifact)


def _made(part: Part, function: str, precision: str, arguments: Mapping[str, Any]) -> Artifact:
    files = {k: file_digest(Path(v)) if k in ("recording", "ranges") else v for k, v in arguments.items()}
    what = function.rpartition(":")[2]  # without its module: a file that moves leaves the key as it is
    key = key_of({"lowering": LOWERING, "what": what, "graph": part.graph, "tools": tool_versions(), **files})

    def make(folder: Path) -> Mapping[str, Any]:
        paths = {"source": str(part.traced.path), "out": str(folder / "model.onnx")}
        done = run_in_subprocess(f"making the {part.name} {precision}", function, **paths, **arguments)
        return {**done.value, "peak_bytes": done.peak_bytes}

    label = {"component": part.name, "kind": "artifact", "precision": precision}
    folder, notes = fetch(key, make, label=label)
    return Artifact(form="onnx", path=folder / "model.onnx", precision=precision, check={"lowering": notes})


@dataclass(frozen=True, kw_only=True)
class Group:
    """Nodes that are quantized, or left alone, together. `loss` is the output's relative L2 with this group alone."""

    name: str
    nodes: tuple[str, ...]
    loss: float


def calibrated(part: Part, dtype: str, backend: str) -> tuple[Path, list[Group]]:
    """Activation ranges over the recording (a file), and the groups, the most sensitive first."""
    key = key_of(
        {
            "lowering": LOWERING,
            "what": "calibration",
            "form": form_for(dtype, backend),
            "graph": part.graph,
            "recording": file_digest(part.recording),
            "tools": tool_versions(),
        }
    )

    def make(folder: Path) -> Mapping[str, Any]:
        paths = {"source": str(part.traced.path), "recording": str(part.recording), "out": str(folder)}
        function = "calotype.export.precision.variants:calibrate"
        done = run_in_subprocess(f"calibrating the {part.name}", function, form=form_for(dtype, backend), **paths)
        return {"peak_bytes": done.peak_bytes}

    label = {"component": part.name, "kind": "calibration", "precision": dtype}
    folder, _ = fetch(key, make, label=label)
    found = json.loads((folder / "groups.json").read_text())
    return folder / "ranges.json", [Group(name=g["name"], nodes=tuple(g["nodes"]), loss=g["loss"]) for g in found]


def halve(*, source: str, out: str, precision: str, recording: str) -> dict[str, Any]:
    """In a child process: islands found on real inputs, then the graph lowered."""
    from .half_convert import find_islands, lower

    feeds = [c.inputs for c in evenly(read_calls(Path(recording)), _ISLAND_CALLS)]
    islands = find_islands(Path(source), feeds, precision=precision)
    return asdict(lower(Path(source), Path(out), precision=precision, islands=islands))


def shrink(*, source: str, out: str, bits: int) -> dict[str, Any]:
    """In a child process: weights in fewer bits."""
    from .weight_only import weight_only

    return asdict(weight_only(Path(source), Path(out), bits=bits))


def form_for(dtype: str, backend: str) -> str:
    """ONNX Runtime multiplies fast only where activations are unsigned: int8 has a form of its own there."""
    return "uint8" if (dtype, backend) == ("int8", "onnxruntime") else dtype


def calibrate(*, source: str, recording: str, out: str, form: str) -> None:
    """In a child process: `ranges.json` and `groups.json` into `out`."""
    from . import calibrate as calibration
    from .candidates import candidates
    from .sensitivity import sensitivity

    calls = read_calls(Path(recording))
    feeds = [c.inputs for c in evenly(calls, _CALIBRATION_CALLS)]
    ranges = calibration.calibrate(Path(source), feeds, form)
    blocks: dict[str, list[str]] = {}
    for candidate in candidates(Path(source)):
        blocks.setdefault(candidate.block, []).append(candidate.node)
    some = [c.inputs for c in evenly(calls, _SENSITIVITY_CALLS)]
    losses = sensitivity(Path(source), some, ranges, blocks, dtype=form)
    groups = [{"name": b, "nodes": nodes, "loss": losses[b]} for b, nodes in blocks.items()]
    groups.sort(key=lambda g: -losses[str(g["name"])])
    Path(out, "ranges.json").write_text(json.dumps(ranges))
    Path(out, "groups.json").write_text(json.dumps(groups))


def quantize(
    *, source: str, out: str, ranges: str, keep: Sequence[str], form: str, half: str | None = None
) -> dict[str, Any]:
    """In a child process: the Q/DQ graph, of a graph in float32 or in the `half` precision that `lower` made."""
    from .quantize import quantize

    read = json.loads(Path(ranges).read_text())
    if half is not None:  # the ranges are of float32's tensors, some of which go by other names there
        read |= {f"{name}.{half}": most for name, most in read.items()}
    made = quantize(Path(source), Path(out), ranges=read, keep=keep, dtype=form)
    return {"quantized": len(made.quantized), "kept": len(made.kept), "bytes": made.size_bytes}
