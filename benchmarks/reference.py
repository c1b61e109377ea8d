"""What every contender is held against: float32 eager's pictures of a case's prompts and seeds, made once and kept.

They are diffusers' own, so that a fault of ours makes us wrong and nobody else.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calotype.benchmarks.cases import Case, prompts_of
from calotype.benchmarks.lane import Shot
from calotype.benchmarks.worker import Worker, WorkerError
from calotype.errors import BackendError
from calotype.export import locks
from calotype.export.versions import versions
from calotype.home import home

_HERE = Path(__file__).resolve().parent
OURS, DIFFUSERS = _HERE / "ours.py", _HERE / "peers" / "diffusers" / "peer.py"
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
    key = _key(painter, calm, fingerprint, [prompts, seeds])
    folder = home() / "bench" / "references" / key
    files = [folder / f"{i}.npy" for i in range(len(prompts))]
    folder.mkdir(parents=True, exist_ok=True)
    with locks.exclusive(folder.with_suffix(".lock"), wait_for=f"float32 eager's pictures of {case.id}"):
        if not all(file.is_file() for file in files):
            calls = list(zip(prompts, seeds, files, strict=True))
            _paint(painter, calm, calls, threads=threads, timeout_s=timeout_s)
    return [
        Shot(prompts=p, seeds=s, wanted=np.load(file), trained=case.judged)
        for p, s, file in zip(prompts, seeds, files, strict=True)
    ]


def _batches(case: Case, texts: Sequence[str]) -> int:
    return max(1, -(-len(texts) // case.batch))


def _key(painter: Path, job: Mapping[str, Any], fingerprint: str, pictures: Any) -> str:
    left_out = ("cache", "threads", "model", "controlnets", "control_images", "plan", "backend")
    said = {name: value for name, value in job.items() if name not in left_out}
    told = [painter.read_text(), fingerprint, said, pictures, versions()]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def _paint(
    peer: Path, job: Mapping[str, Any], calls: Sequence[tuple[Any, Any, Path]], *, threads: int, timeout_s: float
) -> None:
    try:
        with Worker(Path(sys.executable), peer, threads=threads) as worker:
            worker.ask({"op": "load", "job": job}, timeout_s)
            for prompts, seeds, file in calls:
                file.parent.mkdir(parents=True, exist_ok=True)
                fresh = file.with_name(f"fresh-{file.name}")
                told = {"op": "paint", "prompts": prompts, "negative": None, "seeds": seeds, "out": str(fresh)}
                worker.ask(told, timeout_s)
                fresh.replace(file)
    except WorkerError as failed:
        raise BackendError(f"float32 eager, which pictures are held against: {failed}") from None
