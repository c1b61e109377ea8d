"""Reference images of a case: float32 eager PyTorch generates them once for its prompts and seeds, and they are kept.

diffusers generates them, so a fault of ours affects only our own rows.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calotype.errors import BackendError
from calotype.export.steps.versions import versions
from calotype.export.store.store import fetch, key_of

from ..suite.cases import Case, prompts_of
from .contender_process import BenchmarkCall
from .worker import Worker, WorkerError

_HERE = Path(__file__).resolve().parent.parent
OURS, DIFFUSERS = _HERE / "run" / "ours.py", _HERE / "peers" / "diffusers" / "peer.py"
_FIRST_SEED = 100


def reference_calls(
    case: Case, job: Mapping[str, Any], fingerprint: str, *, threads: int, timeout_s: float
) -> list[BenchmarkCall]:
    """Return the calls of a case in batches, each with the images of float32 eager. Raises `BackendError`.

    A fake backend has no networks: its reference is a fake without faults.
    """
    texts = prompts_of(case)
    places = [
        [(start * case.batch + i) % len(texts) for i in range(case.batch)] for start in range(_batches(case, texts))
    ]
    prompts = [tuple(texts[p] for p in some) for some in places]
    seeds = [tuple(_FIRST_SEED + start * case.batch + i for i in range(case.batch)) for start in range(len(places))]
    fake = job["backend"] == "fake"
    calm = {**job, "plan": None, "precision": "fp32", "settings": {}}
    peer_file = OURS if fake else DIFFUSERS

    def make(folder: Path) -> Mapping[str, Any]:
        calls = [(p, s, folder / f"{i}.npy") for i, (p, s) in enumerate(zip(prompts, seeds, strict=True))]
        _generate(peer_file, calm, calls, threads=threads, timeout_s=timeout_s)
        return {}

    key = _key(peer_file, calm, fingerprint, [prompts, seeds])
    folder, _ = fetch(key, make, label={"kind": "reference images", "case": case.id})
    return [
        BenchmarkCall(prompts=p, seeds=s, expected=np.load(folder / f"{i}.npy"), trained=case.judged)
        for i, (p, s) in enumerate(zip(prompts, seeds, strict=True))
    ]


def _batches(case: Case, texts: Sequence[str]) -> int:
    return max(1, -(-len(texts) // case.batch))


def _key(peer_file: Path, job: Mapping[str, Any], fingerprint: str, inputs: Any) -> str:
    left_out = ("cache", "threads", "model", "controlnets", "control_images", "plan", "backend")
    kept_fields = {name: value for name, value in job.items() if name not in left_out}
    request = [peer_file.read_text(), fingerprint, kept_fields, inputs, versions()]
    return key_of({"reference": request})


def _generate(
    peer: Path, job: Mapping[str, Any], calls: Sequence[tuple[Any, Any, Path]], *, threads: int, timeout_s: float
) -> None:
    try:
        with Worker(Path(sys.executable), peer, threads=threads) as worker:
            worker.ask({"op": "load", "job": job}, timeout_s)
            for prompts, seeds, file in calls:
                request = {"op": "generate", "prompts": prompts, "negative": None, "seeds": seeds, "out": str(file)}
                worker.ask(request, timeout_s)
    except WorkerError as failed:
        raise BackendError(f"cannot generate the reference images with float32 eager: {failed}") from None
