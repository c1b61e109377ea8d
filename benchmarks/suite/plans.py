"""The plans of a case. Each precision of ours is built once; peers read the float32 plan.

This module decides the settings of a build. `calotype.export` builds, and finds existing builds again.
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

# These need no search and no calibration, and the suite checks every image: a short evaluation is enough.
_PLAIN = ("fp32", "fp16", "bf16")
PLANLESS = ("eager", "fake")  # backends that run the model's own weights in float32, or no weights


@dataclass(frozen=True, kw_only=True)
class BuiltPlan:
    """A plan, and the seconds that its build took."""

    folder: Path
    seconds: float
    when: str  # ISO date; empty: in this run


def needs_plan(contender: Contender) -> bool:
    """Return whether the contender is ours and its backend opens a plan."""
    exact = contender.backend == "cuda" and contender.precision == "fp32"  # it opens the model itself
    return contender.is_ours and contender.backend not in PLANLESS and not exact


def plan_for(case: Case, source: Source, contender: Contender) -> BuiltPlan:
    """Build the plan of this contender, or return the existing one. Raises the errors of `calotype build`."""
    # Float32 files work in every backend that reads ONNX; their build is evaluated on ONNX Runtime.
    exact = contender.precision == "fp32" and contender.backend in ("onnxruntime", "openvino")
    spec = _spec(case, source, "onnxruntime" if exact else contender.backend, contender.precision)
    built = build(spec)
    PLANS.hold(spec.output.name)
    facts = built.plan.build
    when = "" if built.fresh else str(facts["made"])
    return BuiltPlan(folder=spec.output, seconds=float(facts["seconds"]), when=when)


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
    if case.judged and precision in _PLAIN:
        spec = replace(spec, proof=1, proof_steps=4, calibration=1)
    elif not case.judged:  # one short image of the case's size checks the arithmetic of random weights
        height, width = (Range(min=size, opt=size, max=size) for size in (case.height, case.width))
        bound = (QualityBound(metric="psnr", limit=25.0),)
        spec = replace(spec, height=height, width=width, proof=1, proof_steps=1, calibration=1, max_loss=bound)
        if backend in COMPILED:  # an engine for one size is the fastest; the evaluation needs a batch of one
            spec = replace(spec, batch=Range(min=1, opt=case.batch, max=case.batch), engine=("chunks=1",))
    key = hashlib.sha256(f"{source.fingerprint} {spec.command()}".encode()).hexdigest()[:16]
    return replace(spec, output=PLANS.root / f"{Path(source.model).name}-{backend}-{precision}-{key}")
