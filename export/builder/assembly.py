"""Write a plan's folder (artifacts, configs, tokenizers, schedules) and swap it with the old plan in one step.

Folder and file names are those that Optimum's ONNX Runtime pipelines read: `unet/model.onnx`, `unet/config.json`,
`tokenizer/`, `scheduler/`, `model_index.json`. This module does not know how artifacts are made.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from calotype.errors import BuildError
from calotype.images.depth import PROCESSOR
from calotype.plan.plan import Artifact, Plan, PlannedComponent, is_plan
from calotype.text.tokenizer import ADDED, added_numbers, vocabulary_of

from ..sources.source import Source
from ..store.store import ENTRY

_EXCHANGE = 2  # RENAME_EXCHANGE of Linux's renameat2
_HERE = -100  # AT_FDCWD


def check_output(folder: Path) -> None:
    """Raise `BuildError` if the output folder cannot hold a plan. Runs before any work."""
    try:
        if folder.is_file() or (folder.is_dir() and not is_plan(folder) and any(folder.iterdir())):
            raise BuildError(
                f"{folder} already exists and is not a plan. Choose a new output folder (-o PLAN).", hint="-o PLAN"
            )
        parent = folder.absolute().parent
        parent.mkdir(parents=True, exist_ok=True)
        if not os.access(parent, os.W_OK):
            raise BuildError(f"cannot write to {parent}. Choose another output folder (-o PLAN).", hint="-o PLAN")
    except OSError as error:
        raise BuildError(
            f"{folder} cannot be created ({error.strerror}). Choose another output folder (-o PLAN).", hint="-o PLAN"
        ) from None


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Yield an empty folder next to `folder`. It replaces `folder` if the block succeeds, else it is deleted."""
    fresh = folder.absolute().with_name(f".{folder.name}.making")
    shutil.rmtree(fresh, ignore_errors=True)  # left by a build that was killed; the caller holds this plan's lock
    fresh.mkdir()
    try:
        yield fresh
        _swap_into_place(fresh, folder.absolute())
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _swap_into_place(fresh: Path, folder: Path) -> None:
    """Exchange the two folders atomically, so that a plan exists at every moment."""
    if not folder.exists():
        fresh.rename(folder)
        return
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        done = libc.renameat2(_HERE, os.fsencode(fresh), _HERE, os.fsencode(folder), _EXCHANGE) == 0
    except (OSError, AttributeError):
        done = False
    if not done:  # the system or the file system lacks renameat2: the plan is missing for a moment
        shutil.rmtree(folder)
        fresh.rename(folder)


def assemble(plan: Plan, source: Source, folder: Path) -> Plan:
    """Copy every file of the plan into `folder`. The manifest is not written.

    A component's first artifact is `COMPONENT/model.onnx`; other files are in `COMPONENT/PRECISION/`.

    Returns:
        The plan with paths relative to `folder`.
    """
    components = {c.name: _copied(c, source, folder) for c in plan.components.values()}
    for original in (*source.tokenizers.values(), source.folder / "scheduler"):
        shutil.copytree(original, folder / original.name)
    for original in source.tokenizers.values():
        _write_vocabulary(folder / original.name)
    shutil.copy(source.folder / "model_index.json", folder)
    tokenizers = {name: Path(original.name) for name, original in source.tokenizers.items()}
    estimator = source.depth_estimator
    if estimator is not None:
        for original in (estimator, estimator.with_name(PROCESSOR)):
            shutil.copytree(original, folder / original.name)
        estimator = Path(estimator.name)
    return replace(plan, components=components, tokenizers=tokenizers, depth_estimator=estimator)


def _write_vocabulary(tokenizer: Path) -> None:
    """Write vocab.json and merges.txt: transformers 4 (so Optimum) reads them, transformers 5 does not write them."""
    if all((tokenizer / name).is_file() for name in ("vocab.json", "merges.txt")):
        return
    words, merges = vocabulary_of(tokenizer)
    (tokenizer / "vocab.json").write_text(json.dumps(words, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (tokenizer / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    if learned := added_numbers(tokenizer):
        (tokenizer / ADDED).write_text(json.dumps(learned, ensure_ascii=False), encoding="utf-8")


def _copied(component: PlannedComponent, source: Source, folder: Path) -> PlannedComponent:
    (folder / component.name).mkdir()
    shutil.copy(source.weights_folder(component.name) / "config.json", folder / component.name)
    copied: dict[Path, Path] = {}
    kept: list[Artifact] = []
    own = component.artifacts[0].form == "diffusers"  # the backend opens the model's own weights
    for artifact in component.artifacts:
        if artifact.form == "diffusers" and not own:
            continue
        if artifact.path not in copied:
            # A run falls back to the later artifacts; each has a higher precision than the one before.
            inside = Path(component.name) if not copied else Path(component.name) / artifact.precision
            holder = artifact.path if own else artifact.path.parent
            shutil.copytree(holder, folder / inside, ignore=shutil.ignore_patterns(ENTRY), dirs_exist_ok=True)
            copied[artifact.path] = inside / artifact.path.relative_to(holder)
        kept.append(replace(artifact, path=copied[artifact.path]))
    return component.with_artifacts(*kept)
