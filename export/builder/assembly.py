"""A plan's folder: artifacts, configs, tokenizers and schedules in place of the last plan in a single step.

Folder and file names are those that Optimum's ONNX Runtime pipelines read: `unet/model.onnx`, `unet/config.json`,
`tokenizer/`, `scheduler/`, `model_index.json`. Knows nothing of how artifacts were made.
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
from calotype.plan.plan import Artifact, Plan, PlannedComponent, is_plan
from calotype.text.tokenizer import ADDED, added_numbers, vocabulary_of

from ..sources.source import Source
from ..store.store import ENTRY

_EXCHANGE = 2  # RENAME_EXCHANGE of Linux's renameat2
_HERE = -100  # AT_FDCWD


def check_output(folder: Path) -> None:
    """`BuildError` where something other than a plan is in the way, before any work."""
    try:
        if folder.is_file() or (folder.is_dir() and not is_plan(folder) and any(folder.iterdir())):
            raise BuildError(f"{folder} is there and is no plan; name a folder that does not exist (-o PLAN).")
        parent = folder.absolute().parent
        parent.mkdir(parents=True, exist_ok=True)
        if not os.access(parent, os.W_OK):
            raise BuildError(f"{parent} cannot be written; name another folder (-o PLAN).")
    except OSError as failed:
        raise BuildError(f"{folder} cannot be made ({failed.strerror}); name another folder (-o PLAN).") from None


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, which takes its place when the block ends well and is gone otherwise."""
    fresh = folder.absolute().with_name(f".{folder.name}.making")
    shutil.rmtree(fresh, ignore_errors=True)  # of a build that was killed; the caller holds this plan's lock
    fresh.mkdir()
    try:
        yield fresh
        _take_the_place(fresh, folder.absolute())
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _take_the_place(fresh: Path, folder: Path) -> None:
    """Afterwards `fresh` holds what was in `folder`, if anything was; at no moment is there no plan."""
    if not folder.exists():
        fresh.rename(folder)
        return
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        done = libc.renameat2(_HERE, os.fsencode(fresh), _HERE, os.fsencode(folder), _EXCHANGE) == 0
    except (OSError, AttributeError):
        done = False
    if not done:  # a file system or a system without it: the old plan is gone for a moment
        shutil.rmtree(folder)
        fresh.rename(folder)


def assemble(plan: Plan, source: Source, folder: Path) -> Plan:
    """Copy all that the plan needs into `folder`; the plan with the paths that hold there, manifest unwritten.

    A component's first artifact lies in its folder as model.onnx; another file's is in a folder of its precision.
    """
    components = {c.name: _copied(c, source, folder) for c in plan.components.values()}
    for read in (*source.tokenizers.values(), source.folder / "scheduler"):
        shutil.copytree(read, folder / read.name)
    for read in source.tokenizers.values():
        _spell_out(folder / read.name)
    shutil.copy(source.folder / "model_index.json", folder)
    tokenizers = {name: Path(read.name) for name, read in source.tokenizers.items()}
    return replace(plan, components=components, tokenizers=tokenizers)


def _spell_out(tokenizer: Path) -> None:
    """vocab.json and merges.txt, which transformers 4 (and so Optimum) reads and transformers 5 no longer writes."""
    if all((tokenizer / name).is_file() for name in ("vocab.json", "merges.txt")):
        return
    words, merges = vocabulary_of(tokenizer)
    (tokenizer / "vocab.json").write_text(json.dumps(words, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (tokenizer / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    if learned := added_numbers(tokenizer):
        (tokenizer / ADDED).write_text(json.dumps(learned, ensure_ascii=False), encoding="utf-8")


def _copied(component: PlannedComponent, source: Source, folder: Path) -> PlannedComponent:
    place = folder / component.name
    place.mkdir()
    shutil.copy(source.weights_folder(component.name) / "config.json", place)
    there: dict[Path, Path] = {}
    kept: list[Artifact] = []
    own = component.artifacts[0].form == "diffusers"  # a backend that opens the model's own weights
    for artifact in component.artifacts:
        if artifact.form == "diffusers" and not own:
            continue
        if artifact.path not in there:
            # The others are what a run falls back to, of a higher precision each.
            inside = Path(component.name) if not there else Path(component.name) / artifact.precision
            holder = artifact.path if own else artifact.path.parent
            shutil.copytree(holder, folder / inside, ignore=shutil.ignore_patterns(ENTRY), dirs_exist_ok=True)
            there[artifact.path] = inside / artifact.path.relative_to(holder)
        kept.append(replace(artifact, path=there[artifact.path]))
    return component.with_artifacts(*kept)
