"""A source becomes a plan: its components described, and the artefacts asked for found in the store or made."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from calotype.errors import CalotypeError, CheckError, SourceError, first_line
from calotype.export.source import Source, read_source
from calotype.export.store import fetch, key_of
from calotype.export.versions import versions
from calotype.family import FOLDERS, Component, family_of
from calotype.plan import Artefact, Plan, PlannedComponent, write_plan
from calotype.profile import Profile

TRACER = 1  # raised when the way components are traced changes what comes out


def prepare(model: str | Path, *, forms: Collection[str] = ("onnx",)) -> Plan:
    """The plan of a model, with the eager reference and the other forms asked for.

    The first use of a model traces it into the store (tens of seconds for the demonstration model); the next finds it
    there. Raises `SourceError`.
    """
    source = read_source(model)
    family = family_of(source.configs)
    return Plan(
        model=source.model,
        family="sd1",
        fingerprint=source.fingerprint,
        profile=family.profile,
        components={c.name: _planned(c, source, family.profile, forms) for c in family.components.values()},
        scheduler=source.configs["scheduler"],
        tokenizer=source.folder / "tokenizer",
        scaling_factor=family.scaling_factor,
        loads=family.loads,
    )


def _planned(component: Component, source: Source, profile: Profile, forms: Collection[str]) -> PlannedComponent:
    weights = source.folder / FOLDERS[component.name]
    artefacts = [Artefact(form="diffusers", path=weights, precision="fp32", check={})]
    refused = {}
    if "onnx" in forms:
        try:
            artefacts.append(_onnx(component, source, profile))
        except CheckError as failed:
            refused["onnx"] = str(failed)
    return PlannedComponent(
        name=component.name,
        inputs=component.inputs,
        outputs=component.outputs,
        artefacts=tuple(artefacts),
        refused=refused,
    )


def _onnx(component: Component, source: Source, profile: Profile) -> Artefact:
    folder_name = FOLDERS[component.name]
    key = key_of(
        {
            "component": component.name,
            "config": source.configs[folder_name],
            "weights": source.digests[folder_name],
            "bindings": [b.to_json() for b in (*component.inputs, *component.outputs)],
            "tools": versions(),
            "tracer": TRACER,
        }
    )

    def make(folder: Path) -> Mapping[str, Any]:
        print(f"calotype: tracing the {component.name} of {source.model} (once)", file=sys.stderr)
        return _trace_and_check(component, source.folder / folder_name, profile, folder)

    folder, check = fetch(key, make)
    return Artefact(form="onnx", path=folder / "model.onnx", precision="fp32", check=check)


def _trace_and_check(component: Component, weights: Path, profile: Profile, folder: Path) -> Mapping[str, Any]:
    from calotype.export.check import check_onnx
    from calotype.export.trace import trace
    from calotype.modules import load_module

    module = load_module(component.name, weights)
    try:
        path = trace(component, module, _sizes(profile, 2, 2, 3), folder)
        return check_onnx(component, module, path, [_sizes(profile, 1, 4, 2), _sizes(profile, 3, 3, 5)])
    except (CalotypeError, OSError):
        raise
    except Exception as failed:  # torch's exporter raises whatever its inside raises
        raise CheckError(f"the {component.name} cannot be traced to ONNX: {first_line(failed)}") from failed


def _sizes(profile: Profile, batch: int, tall: int, wide: int) -> dict[str, int]:
    """Small sizes: the graph is the same, and a full-size trace would hold gigabytes of activations."""
    return profile.sizes(batch=batch, height=tall * profile.multiple, width=wide * profile.multiple)


def save_plan(model: str | Path, folder: str | Path) -> Plan:
    """Write a plan that `calotype.load(folder)` opens without torch, on any machine with ONNX Runtime.

    Folders and names are those that Optimum's ONNX Runtime pipelines read. Raises `SourceError` where `folder` exists.
    """
    plan, out = prepare(model), Path(folder)
    if out.exists():
        raise SourceError(f"{out} exists already; name a folder that does not.")
    source = read_source(model)
    saved = {}
    for component in plan.components.values():
        artefact = component.artefact("onnx")
        if artefact is None:
            raise SourceError(component.refused["onnx"])
        shutil.copytree(artefact.path.parent, out / component.name, ignore=shutil.ignore_patterns("entry.json"))
        shutil.copy(source.folder / FOLDERS[component.name] / "config.json", out / component.name)
        kept = replace(artefact, path=Path(component.name) / artefact.path.name)
        saved[component.name] = replace(component, artefacts=(kept,))
    for name in ("tokenizer", "scheduler"):
        shutil.copytree(source.folder / name, out / name)
    shutil.copy(source.folder / "model_index.json", out)
    written = replace(plan, components=saved, tokenizer=Path("tokenizer"))
    write_plan(written, out)
    return written
