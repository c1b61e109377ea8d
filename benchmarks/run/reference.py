"""Reference images of a case: float32 eager PyTorch generates them once for its prompts and seeds, and they are kept.

diffusers generates them, so a fault of ours affects only our own rows.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from calotype.errors import BackendError
from calotype.export.steps.versions import versions
from calotype.export.store.store import fetch, key_of

from ..suite.cases import prompts_of
from .contender_process import BenchmarkCall
from .worker import Worker, WorkerError
from .workload import CaseContext

_HERE = Path(__file__).resolve().parent.parent
OURS, DIFFUSERS = _HERE / "run" / "ours.py", _HERE / "peers" / "diffusers" / "peer.py"
_FIRST_SEED = 100
# What does not change the images, or is part of the model's fingerprint.
_NOT_IN_KEY = ("cache", "threads", "model", "controlnets", "control_images", "plan", "backend")


def reference_calls(context: CaseContext) -> list[BenchmarkCall]:
    """Return the calls of a case in batches, each with the images of float32 eager. Raises `BackendError`."""
    case, texts = context.case, prompts_of(context.case)
    starts = range(0, max(len(texts), 1), case.batch)
    prompts = [tuple(texts[(start + i) % len(texts)] for i in range(case.batch)) for start in starts]
    seeds = [tuple(_FIRST_SEED + start + i for i in range(case.batch)) for start in starts]
    # A case with only fake contenders (a test of the suite) has a fake without faults as its reference.
    fake = all(contender.backend == "fake" for contender in case.contenders)
    peer = OURS if fake else DIFFUSERS
    job = {**context.job, "backend": "fake" if fake else "eager"}

    def make(folder: Path) -> Mapping[str, Any]:
        try:
            with Worker(Path(sys.executable), peer, threads=context.settings.threads) as worker:
                worker.ask({"op": "load", "job": job}, context.settings.timeout_s)
                for i, call in enumerate(zip(prompts, seeds, strict=True)):
                    request = {"op": "generate", "prompts": call[0], "negative": None, "seeds": call[1]}
                    worker.ask({**request, "out": str(folder / f"{i}.npy")}, context.settings.timeout_s)
        except WorkerError as failed:
            raise BackendError(f"cannot generate the reference images with float32 eager: {failed}") from None
        return {}

    kept = {name: value for name, value in job.items() if name not in _NOT_IN_KEY}
    request = [peer.read_text(), context.source.fingerprint, kept, [prompts, seeds], versions()]
    folder, _ = fetch(key_of({"reference": request}), make, label={"kind": "reference images", "case": case.id})
    return [
        BenchmarkCall(prompts=p, seeds=s, expected=np.load(folder / f"{i}.npy"), trained=case.judged)
        for i, (p, s) in enumerate(zip(prompts, seeds, strict=True))
    ]
