"""How a contender enters a case: the checks that cost nothing, the plan that it opens, and its lane."""

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
from ..suite.plans import Built, needs_plan, plan_for
from . import environments
from .contender_process import Lane
from .reference import OURS
from .workload import need_bytes

OWN_PEER = "diffusers"  # whose packages are among ours


@dataclass(frozen=True, kw_only=True)
class Entrance:
    """A case as all its contenders find it."""

    case: Case
    source: Source
    job: Mapping[str, Any]
    threads: int
    timeout_s: float


def enter(contender: Contender, entrance: Entrance) -> Lane:
    """A lane without a process yet. Raises a `CalotypeError` that says why the contender cannot be started."""
    case = entrance.case
    python, file = _ours(contender, case) if contender.is_ours else _peer(contender, case)
    built = _built(contender, entrance)
    told = {
        **{"backend": contender.backend, "precision": contender.precision, "settings": dict(contender.settings)},
        "plan": None if built is None else str(built.folder),
    }
    return Lane(
        contender=contender,
        python=python,
        file=file,
        job={**entrance.job, **told},
        # A plan's build is ours to tell; what peers convert and compile they tell themselves.
        built=built if contender.is_ours else None,
        threads=entrance.threads,
        timeout_s=entrance.timeout_s,
        need_bytes=need_bytes(case, entrance.source),
    )


def _ours(contender: Contender, case: Case) -> tuple[Path, Path]:
    backend = contender.backend
    if backend not in NAMES:
        raise InputError(f"no pictures can be painted with the backend {backend} yet")
    if (backend in ON_GPU) != (case.device == "cuda") and backend != "fake":
        raise InputError(f"the backend {backend} does not run on {case.device}, which this case is for")
    if (why_not := unavailable(backend)) is not None:
        raise InputError(why_not)
    if backend == "eager" and contender.precision != "fp32":
        raise InputError(f"the backend {backend} runs a model's own weights in fp32, not in {contender.precision}")
    return Path(sys.executable), OURS


def _peer(contender: Contender, case: Case) -> tuple[Path, Path]:
    peer = PEERS[contender.maker]
    if peer.device not in ("any", case.device):
        raise InputError(f"{contender.maker} runs on {peer.device}, and this case on {case.device}")
    python = environments.python_of(peer.folder)
    if python is None and case.device == "cuda" and peer.folder == OWN_PEER:
        python = Path(sys.executable)  # a GPU is lent with packages of its own, and nothing can be fetched there
    if python is None:
        failed = environments.why_not(peer.folder)
        raise InputError(failed or f"its environment is not made yet: calotype bench peers {contender.maker}")
    return python, environments.worker_file(peer.folder)


def _built(contender: Contender, entrance: Entrance) -> Built | None:
    """The plan that the contender opens: its own, or float32's for a peer that reads our ONNX files."""
    if needs_plan(contender):
        return plan_for(entrance.case, entrance.source, contender)
    if not contender.is_ours and "provider" in contender.settings:
        exact = replace(contender, backend="onnxruntime", precision="fp32")
        return plan_for(entrance.case, entrance.source, exact)
    return None
