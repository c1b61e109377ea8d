"""Recordings of real runs in the store: found there, or made on the eager backend, a child process for each component.

Each component's recording depends on the components before it in a run and on nothing after, so that a changed decoder
does not make the U-Net's anew.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from calotype.files.digest import file_digest
from calotype.plan.plan import Plan, write_plan
from calotype.text.tokenizer import tokenizer_files

from ..sources.source import Source
from ..steps.subprocess_task import run_in_subprocess
from ..steps.versions import versions
from ..store.store import fetch, key_of
from .capture import Pictures, groups

RECORDER = 2  # raised when what is recorded changes

# The stage's block, and what the child held at most.
Stage = Callable[[str], AbstractContextManager[None]]


def record_all(plan: Plan, source: Source, pictures: Pictures, what: str, stage: Stage) -> dict[str, Path]:
    """The recording of every component of the plan over these pictures: component -> .npz of `record.Call`s.

    `plan` has the eager reference of every component; `what` ("calibration", "proof") names the pictures.
    """
    found: dict[str, Path] = {}
    before: list[str] = []
    for names in groups(tuple(plan.components), masked=pictures.masked):
        before += names
        key = _key(plan, source, pictures, tuple(before))
        with stage(f"record {', '.join(names)} ({what})"):
            folder = _recorded(key, plan, names, found, pictures)
        found |= {name: folder / f"{name}.npz" for name in names}
        pending = folder / "vae_decoder.pending.npz"
        if pending.is_file():
            found["vae_decoder"] = pending
        if "vae_decoder" in names and not pictures.masked:
            found["vae_encoder"] = found["vae_decoder"]
    return found


def _key(plan: Plan, source: Source, pictures: Pictures, names: tuple[str, ...]) -> str:
    return key_of(
        {
            "recorder": RECORDER,
            "components": {n: [source.weights_digest(n), plan.components[n].inputs] for n in names},
            "tokenizers": [file_digest(p) for folder in plan.tokenizers.values() for p in tokenizer_files(folder)],
            "scheduler": plan.scheduler,
            "pictures": asdict(pictures),
            "tools": versions(),
        }
    )


def _recorded(key: str, plan: Plan, names: tuple[str, ...], earlier: Mapping[str, Path], pictures: Pictures) -> Path:
    def make(folder: Path) -> Mapping[str, Any]:
        with tempfile.TemporaryDirectory(prefix="calotype-") as scratch:
            write_plan(plan, Path(scratch))
            done = run_in_subprocess(
                f"recording the {', '.join(names)}",
                "calotype.export.onnx.capture:record",
                plan=scratch,
                names=list(names),
                earlier={name: str(path) for name, path in earlier.items()},
                pictures=asdict(pictures),
                out=str(folder),
            )
        return {"peak_bytes": done.peak_bytes}

    label = {"component": ", ".join(names), "kind": "recording", "model": plan.model}
    return fetch(key, make, label=label)[0]
