"""Recordings of real runs as entries of the store, captured on the eager backend in one child process per component.

A recording depends only on its component and on those before it in a run: a new decoder does not change the U-Net's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

from calotype.files.digest import file_digest
from calotype.plan.plan import Plan, write_plan
from calotype.text.tokenizer import tokenizer_files

from ..sources.source import Source
from ..steps.stored_step import StoredStep
from ..steps.versions import versions
from .capture import ImageSet, groups

RECORDER = 2  # increased when the content of recordings changes

Stage = Callable[[str], AbstractContextManager[None]]  # name of a stage -> context manager of its work


def record_all(plan: Plan, source: Source, images: ImageSet, purpose: str, stage: Stage) -> dict[str, Path]:
    """Record every component of the plan over the images: component -> .npz file of `capture.Call`s.

    `plan` has the eager reference of every component. `purpose` ("calibration", "proof") appears in progress.
    """
    recordings: dict[str, Path] = {}
    before: list[str] = []
    for names in groups(tuple(plan.components), masked=images.masked):
        before += names
        with stage(f"record {', '.join(names)} ({purpose})"):
            folder = _record(plan, source, images, list(names), before, recordings)
        recordings |= {name: folder / f"{name}.npz" for name in names}
        pending = folder / "vae_decoder.pending.npz"
        if pending.is_file():
            recordings["vae_decoder"] = pending
        if "vae_decoder" in names and not images.masked:
            recordings["vae_encoder"] = recordings["vae_decoder"]
    return recordings


def _record(
    plan: Plan, source: Source, images: ImageSet, names: list[str], before: list[str], earlier: Mapping[str, Path]
) -> Path:
    """Return the folder with the recordings of `names`; they depend on the components `before`, themselves included."""
    step = StoredStep(
        depends_on={
            "recorder": RECORDER,
            "components": {n: [source.weights_digest(n), plan.components[n].inputs] for n in before},
            "tokenizers": [file_digest(p) for folder in plan.tokenizers.values() for p in tokenizer_files(folder)],
            "scheduler": plan.scheduler,
            "pictures": asdict(images),
            "tools": versions(),
        },
        label={"component": ", ".join(names), "kind": "recording", "model": plan.model},
    )
    with tempfile.TemporaryDirectory(prefix="calotype-") as scratch:
        write_plan(plan, Path(scratch))
        return step.run_in_child(
            f"recording the {', '.join(names)}",
            "calotype.export.onnx.capture:record",
            plan=scratch,
            names=names,
            earlier={name: str(path) for name, path in earlier.items()},
            images=asdict(images),
        ).folder
