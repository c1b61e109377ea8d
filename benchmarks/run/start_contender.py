"""Start of a contender in a case: the cheap checks, the plan that it opens, and its process."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from calotype.backends import NAMES, ON_GPU, unavailable
from calotype.errors import InputError

from ..suite.cases import Case
from ..suite.contenders import PEERS, Contender
from ..suite.plans import needs_plan, plan_for
from . import environments
from .contender_process import ContenderProcess
from .workload import OURS, CaseContext, need_bytes

OWN_PEER = "diffusers"  # its packages are part of our own environment


def start_contender(contender: Contender, context: CaseContext) -> ContenderProcess:
    """Return a contender whose process has not started yet. Raises a `CalotypeError` if it cannot run."""
    case, plan = context.case, None
    if contender.is_ours:
        _check_ours(contender, case)
        python, file = Path(sys.executable), OURS
    else:
        python, file = python_of_peer(contender, case), environments.worker_file(PEERS[contender.maker].folder)
    if needs_plan(contender):
        plan = plan_for(case, context.source, contender)
    elif "provider" in contender.settings:  # a peer that reads our ONNX files
        plan = plan_for(case, context.source, replace(contender, backend="onnxruntime", precision="fp32"))
    own = {"backend": contender.backend, "precision": contender.precision, "settings": dict(contender.settings)}
    return ContenderProcess(
        contender=contender,
        python=python,
        file=file,
        job={**context.job, **own, "plan": None if plan is None else str(plan.folder)},
        # We report how long our plans took to build; peers report their own conversions.
        built=plan if contender.is_ours else None,
        threads=context.settings.threads,
        timeout_s=context.settings.timeout_s,
        need_bytes=need_bytes(case, context.source),
    )


def _check_ours(contender: Contender, case: Case) -> None:
    backend = contender.backend
    if backend not in NAMES:
        raise InputError(f"the backend {backend} cannot generate images yet")
    if (backend in ON_GPU) != (case.device == "cuda") and backend != "fake":
        raise InputError(f"the backend {backend} does not run on {case.device}, the device of this case")
    if (reason := unavailable(backend)) is not None:
        raise InputError(reason)
    if backend == "eager" and contender.precision != "fp32":
        raise InputError(f"the backend {backend} runs in fp32, not in {contender.precision}")


def python_of_peer(contender: Contender, case: Case) -> Path:
    """Return the interpreter that runs a peer. Raises `InputError` if the peer cannot run here."""
    peer = PEERS[contender.maker]
    if peer.device not in ("any", case.device):
        raise InputError(f"{contender.maker} runs on {peer.device}, and this case runs on {case.device}")
    if (python := environments.python_of(peer.folder)) is not None:
        return python
    if case.device == "cuda" and peer.folder == OWN_PEER:
        return Path(sys.executable)  # a machine with a GPU may have its own packages and no network
    failed = environments.failure_reason(peer.folder)
    raise InputError(failed or f"its environment is not installed. Run calotype bench peers {contender.maker}")
