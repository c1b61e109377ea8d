"""The plans that a case needs: ours are built once for each precision, and peers read the float32 one.

Knows what a case asks of a build; building, and finding again what was built, is `calotype.export`'s.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from calotype.backends import COMPILED
from calotype.export import BuildSpec, build
from calotype.export.quality.bounds import QualityBound
from calotype.export.sources.source import Source
from calotype.export.store.gc import PLANS
from calotype.plan.profile import Range

from .cases import Case
from .contenders import Contender

# Nothing is searched or calibrated for these, and the suite judges every picture itself: a short proof is enough.
_PLAIN = ("fp32", "fp16", "bf16")
PLANLESS = ("eager", "fake")  # backends that run a model's own weights, in float32, or none


@dataclass(frozen=True, kw_only=True)
class Built:
    """A plan, and what building it took when that was done."""

    folder: Path
    seconds: float
    when: str  # ISO date; empty: just now


def needs_plan(contender: Contender) -> bool:
    """Is the contender ours, and on a backend that opens what was built?"""
    exact = contender.backend == "cuda" and contender.precision == "fp32"  # the model as it is
    return contender.is_ours and contender.backend not in PLANLESS and not exact


def plan_for(case: Case, source: Source, contender: Contender) -> Built:
    """Build what this contender opens, or find it built. Raises what `calotype build` raises."""
    # Float32 files serve every backend that reads ONNX; what is proved for them is proved on ONNX Runtime.
    exact = contender.precision == "fp32" and contender.backend in ("onnxruntime", "openvino")
    spec = _spec(case, source, "onnxruntime" if exact else contender.backend, contender.precision)
    built = build(spec)
    PLANS.hold(spec.output.name)
    told = built.plan.build
    return Built(folder=spec.output, seconds=float(told["seconds"]), when="" if built.fresh else str(told["made"]))


def _spec(case: Case, source: Source, backend: str, precision: str) -> BuildSpec:
    spec = BuildSpec(
        model="demo" if source.model == "demo" else str(source.folder),
        output=Path(),
        backend=backend,
        precision=precision,
        scheduler=() if case.sampler == "own" else (case.sampler,),
        steps=Range(min=1, opt=20, max=max(50, case.steps)),
        controlnet=tuple(str(path) for name, path in source.folders.items() if name.startswith("controlnet")),
    )
    if not case.judged:
        spec = _untrained(spec, case)
    elif precision in _PLAIN:
        spec = replace(spec, proof=1, proof_steps=4, calibration=1)
    key = hashlib.sha256(f"{source.fingerprint} {spec.command()}".encode()).hexdigest()[:16]
    name = f"{Path(source.model).name}-{backend}-{precision}-{key}"
    return replace(spec, output=PLANS.root / name)


def _untrained(spec: BuildSpec, case: Case) -> BuildSpec:
    """For weights that nobody trained one short picture of the case's size shows whether the arithmetic holds."""
    height, width = (Range(min=size, opt=size, max=size) for size in (case.height, case.width))
    gate = (Bound(metric="psnr", limit=25.0),)
    spec = replace(spec, height=height, width=width, proof=1, proof_steps=1, calibration=1, max_loss=gate)
    if spec.backend not in COMPILED:
        return spec
    # An engine is best where it is for one size alone; the proof is of one picture.
    return replace(spec, batch=Range(min=1, opt=case.batch, max=case.batch), engine=("chunks=1",))
