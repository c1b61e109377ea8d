"""What every contender is held against: float32 eager's pictures of a case's prompts and seeds, made once and kept.

They are diffusers' own, so that a fault of ours makes us wrong and nobody else.
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
from .contender_process import Shot
from .worker import Worker, WorkerError

_HERE = Path(__file__).resolve().parent.parent
OURS, DIFFUSERS = _HERE / "run" / "ours.py", _HERE / "peers" / "diffusers" / "peer.py"
_FIRST_SEED = 100


def shots_of(case: Case, job: Mapping[str, Any], fingerprint: str, *, threads: int, timeout_s: float) -> list[Shot]:
    """The case's pictures in batches, each with float32 eager's own. Raises `BackendError` where eager fails.

    A fake backend has no networks: its reference is itself without faults.
    """
    texts = prompts_of(case)
    places = [
        [(start * case.batch + i) % len(texts) for i in range(case.batch)] for start in range(_batches(case, texts))
    ]
    prompts = [tuple(texts[p] for p in some) for some in places]
    seeds = [tuple(_FIRST_SEED + start * case.batch + i for i in range(case.batch)) for start in range(len(places))]
    fake = job["backend"] == "fake"
    calm = {**job, "plan": None, "precision": "fp32", "settings": {}}
    painter = OURS if fake else DIFFUSERS

    def make(folder: Path) -> Mapping[str, Any]:
        calls = [(p, s, folder / f"{i}.npy") for i, (p, s) in enumerate(zip(prompts, seeds, strict=True))]
        _paint(painter, calm, calls, threads=threads, timeout_s=timeout_s)
        return {}

    key = _key(painter, calm, fingerprint, [prompts, seeds])
    folder, _ = fetch(key, make, label={"kind": "float32 eager's pictures of", "case": case.id})
    return [
        Shot(prompts=p, seeds=s, wanted=np.load(folder / f"{i}.npy"), trained=case.judged)
        for i, (p, s) in enumerate(zip(prompts, seeds, strict=True))
    ]


def _batches(case: Case, texts: Sequence[str]) -> int:
    return max(1, -(-len(texts) // case.batch))


def _key(painter: Path, job: Mapping[str, Any], fingerprint: str, pictures: Any) -> str:
    left_out = ("cache", "threads", "model", "controlnets", "control_images", "plan", "backend")
    said = {name: value for name, value in job.items() if name not in left_out}
    told = [painter.read_text(), fingerprint, said, pictures, versions()]
    return key_of({"reference": told})


def _paint(
    peer: Path, job: Mapping[str, Any], calls: Sequence[tuple[Any, Any, Path]], *, threads: int, timeout_s: float
) -> None:
    try:
        with Worker(Path(sys.executable), peer, threads=threads) as worker:
            worker.ask({"op": "load", "job": job}, timeout_s)
            for prompts, seeds, file in calls:
                told = {"op": "paint", "prompts": prompts, "negative": None, "seeds": seeds, "out": str(file)}
                worker.ask(told, timeout_s)
    except WorkerError as failed:
        raise BackendError(f"float32 eager, which pictures are held against: {failed}") from None
