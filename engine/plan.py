"""What can be run: a manifest of components, their tensors, and the artefacts made or found for each.

`plan.json` in a folder says it on disk; paths in it are relative to that folder, or absolute for the weights of a
source that stay where they are. Knows nothing of how artefacts are made (`calotype.export`) or run (`backends`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calotype.bindings import Binding
from calotype.errors import InputError, SourceError
from calotype.profile import Profile

MANIFEST = "plan.json"
VERSION = 1
COMPONENTS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """One thing that a backend can open: `form` is "onnx" (a file) or "diffusers" (a folder of config and weights).

    `check` says how it was held against the eager float32 reference (empty for the reference itself).
    """

    form: str
    path: Path
    precision: str
    check: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class PlannedComponent:
    """One network of the plan: its tensors and its artefacts.

    `refused` says of a form of artefact why there is none: it was made, and did not agree with the reference.
    """

    name: str
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    artefacts: tuple[Artefact, ...]
    refused: Mapping[str, str]

    def artefact(self, form: str) -> Artefact | None:
        """The artefact of this form, if there is one."""
        return next((a for a in self.artefacts if a.form == form), None)


@dataclass(frozen=True, kw_only=True)
class Load:
    """One of the largest arrays of a run, for the estimate of memory: `width` numbers at every `pixels` x `pixels`.

    `squared` arrays hold a number for every pair of places (attention scores, `width` heads of them); `guided` ones
    are twice as large where there is guidance.
    """

    pixels: int
    width: int
    squared: bool
    guided: bool


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A model, ready to be opened."""

    model: str  # what the user called it; a plan that was read from a folder is called by the folder
    family: str
    fingerprint: str  # SHA-256 over the source's weights and configs
    profile: Profile
    components: Mapping[str, PlannedComponent]
    scheduler: Mapping[str, Any]  # diffusers' scheduler config
    tokenizer: Path
    scaling_factor: float  # latents of the U-Net = scaling_factor x latents of the autoencoder
    loads: tuple[Load, ...]

    @property
    def model_id(self) -> str:
        """The first twelve digits of the fingerprint: enough to tell models apart in a picture's metadata."""
        return self.fingerprint[:12]


def write_plan(plan: Plan, folder: Path) -> None:
    """`plan.json` into `folder`."""
    components = {
        c.name: {
            "inputs": [b.to_json() for b in c.inputs],
            "outputs": [b.to_json() for b in c.outputs],
            "artefacts": [
                {"form": a.form, "path": str(a.path), "precision": a.precision, "check": dict(a.check)}
                for a in c.artefacts
            ],
            "refused": dict(c.refused),
        }
        for c in plan.components.values()
    }
    manifest = {
        "version": VERSION,
        "family": plan.family,
        "fingerprint": plan.fingerprint,
        "profile": plan.profile.to_json(),
        "components": components,
        "scheduler": dict(plan.scheduler),
        "tokenizer": str(plan.tokenizer),
        "scaling_factor": plan.scaling_factor,
        "loads": [vars(load) for load in plan.loads],
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def is_plan(folder: str | Path) -> bool:
    """Is there a plan in this folder? What cannot be looked at is none."""
    try:
        return (Path(folder).expanduser() / MANIFEST).is_file()
    except (OSError, RuntimeError, ValueError):
        return False


def read_plan(folder: Path) -> Plan:
    """The plan in `folder`. Raises `SourceError` in one sentence where it cannot be read."""
    try:
        data = json.loads((folder / MANIFEST).read_text())
        if data["version"] != VERSION:
            raise SourceError(f"{folder} is a plan of version {data['version']}; this Calotype reads {VERSION}.")
        return Plan(
            model=str(folder),
            family=data["family"],
            fingerprint=data["fingerprint"],
            profile=Profile.from_json(data["profile"]),
            components={name: _component(folder, name, data["components"][name]) for name in COMPONENTS},
            scheduler=data["scheduler"],
            tokenizer=folder / data["tokenizer"],
            scaling_factor=data["scaling_factor"],
            loads=tuple(Load(**load) for load in data["loads"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError) as broken:
        raise SourceError(f"the plan in {folder} cannot be read ({type(broken).__name__}: {broken}).") from None


def _component(folder: Path, name: str, data: Mapping[str, Any]) -> PlannedComponent:
    return PlannedComponent(
        name=name,
        inputs=tuple(Binding.from_json(b) for b in data["inputs"]),
        outputs=tuple(Binding.from_json(b) for b in data["outputs"]),
        artefacts=tuple(
            Artefact(form=a["form"], path=folder / a["path"], precision=a["precision"], check=a["check"])
            for a in data["artefacts"]
        ),
        refused=data["refused"],
    )
