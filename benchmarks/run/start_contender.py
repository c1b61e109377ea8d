"""Start of a contender in a case: the cheap checks, the plan that it opens, and its process."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calotype.backends import NAMES, ON_GPU, unavailable
from calotype.errors import InputError
from calotype.export.sources.source import Source

from ..suite.cases import Case
from ..suite.contenders import PEERS, Contender
from ..suite.plans import BuiltPlan, needs_plan, plan_for
from . import environments
from .contender_process import ContenderProcess
from .reference import OURS
from .workload import need_bytes

OWN_PEER = "diffusers"  # its packages are part of our own environment


@dataclass(frozen=True, kw_only=True)
class CaseContext:
    """What all contenders of a case share."""

    case: Case
    source: Source
    job: Mapping[str, Any]
    threads: int
    timeout_s: float


def start_contender(contender: Contender, context: CaseContext) -> ContenderProcess:
    """Return a contender whose process has not started yet. Raises a `CalotypeError` if it cannot run."""
    case = context.case
    python, file = _ours(contender, case) if contender.is_ours else _peer(contender, case)
    built = _built(contender, context)
    fields = {
        **{"backend": contender.backend, "precision": contender.precision, "settings": dict(contender.settings)},
        "plan": None if built is None else str(built.folder),
    }
    return ContenderProcess(
        contender=contender,
        python=python,
        file=file,
        job={**context.job, **fields},
        # We report how long our plans took to build; peers report their own conversions.
        built=built if contender.is_ours else None,
        threads=context.threads,
        timeout_s=context.timeout_s,
        need_bytes=need_bytes(case, context.source),
    )


def _ours(contender: Contender, case: Case) -> tuple[Path, Path]:
    backend = contender.backend
    if backend not in NAMES:
        raise InputError(f"the backend {backend} cannot generate images yet")
    if (backend in ON_GPU) != (case.device == "cuda") and backend != "fake":
        raise InputError(f"the backend {backend} does not run on {case.device}, the device of this case")
    if (reason := unavailable(backend)) is not None:
        raise InputError(reason)
    if backend == "eager" and contender.precision != "fp32":
        raise InputError(f"the backend {backend} runs in fp32, not in {contender.precision}")
    return Path(sys.executable), OURS


def _peer(contender: Contender, case: Case) -> tuple[Path, Path]:
    peer = PEERS[contender.maker]
    if peer.device not in ("any", case.device):
        raise InputError(f"{contender.maker} runs on {peer.device}, and this case runs on {case.device}")
    python = environments.python_of(peer.folder)
    if python is None and case.device == "cuda" and peer.folder == OWN_PEER:
        python = Path(sys.executable)  # a machine with a GPU may have its own packages and no network
    if python is None:
        failed = environments.failure_reason(peer.folder)
        raise InputError(failed or f"its environment is not installed. Run calotype bench peers {contender.maker}")
    return python, environments.worker_file(peer.folder)


def _built(contender: Contender, context: CaseContext) -> BuiltPlan | None:
    """Return the plan that the contender opens: its own, or the float32 plan for a peer that reads our ONNX files."""
    if needs_plan(contender):
        return plan_for(context.case, context.source, contender)
    if not contender.is_ours and "provider" in contender.settings:
        exact = replace(contender, backend="onnxruntime", precision="fp32")
        return plan_for(context.case, context.source, exact)
    return None
