"""What can be run: a manifest of components, their tensors, and the artifacts made or found for each.

`plan.json` in a folder says it on disk; paths in it are relative to that folder, or absolute for the weights of a
source that stay where they are. The manifest carries the size and SHA-256 of every file beside it and a digest of
itself, so that nothing damaged or exchanged is opened. Knows nothing of how artifacts are made (`calotype.export`) or
run (`backends`).
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import SourceError
from ..errors.schema import SchemaError
from ..files.digest import digest_of
from ..files.json_file import read_json
from ..system.memory import Load
from .bindings import Binding
from .command import rebuild_command
from .files import check_listed_files, check_opened_files
from .integrity import stamps, stamps_from_json, verify
from .manifest import check_manifest
from .profile import Profile

MANIFEST = "plan.json"
VERSION = 4
_LARGEST_BYTES = 16 << 20  # of a manifest: that of the largest model is a hundredth


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """One thing that a backend can open: `form` is "onnx" (a file) or "diffusers" (a folder of config and weights).

    `check` says how it was held against the eager float32 reference (empty for the reference itself).
    """

    form: str
    path: Path
    precision: str
    check: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class PlannedComponent:
    """One network of the plan: its tensors and its artifacts.

    `refused` says of a form of artifact why there is none: it was made, and did not agree with the reference.
    """

    name: str
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    artifacts: tuple[Artifact, ...]
    refused: Mapping[str, str]

    def with_artifacts(self, *artifacts: Artifact) -> PlannedComponent:
        """The same component with these artifacts, the preferred one first."""
        return replace(self, artifacts=artifacts)

    def with_refusal(self, form: str, why: str) -> PlannedComponent:
        """The same component with the reason why it has no artifact of this form."""
        return replace(self, refused={**self.refused, form: why})

    def artifact(self, form: str) -> Artifact | None:
        """The artifact of this form, if there is one."""
        return next((a for a in self.artifacts if a.form == form), None)


@dataclass(frozen=True, kw_only=True)
class Prompting:
    """How text becomes what the U-Net takes: (text encoder, name of one of its outputs) pairs.

    `states` stand side by side along their width; `pooled` is what `text_embeds` gets, where the U-Net has such an
    input. With `zero_negative` a negative prompt that was not said is zeros, and not the empty text.
    """

    states: tuple[tuple[str, str], ...]
    pooled: tuple[str, str] | None
    zero_negative: bool

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Prompting:
        """From the plain data that a plan's manifest holds."""
        states = tuple((str(component), str(output)) for component, output in data["states"])
        pooled = data["pooled"] and (str(data["pooled"][0]), str(data["pooled"][1]))
        return cls(states=states, pooled=pooled, zero_negative=bool(data["zero_negative"]))


def skipping(output: str, clip_skip: int | None) -> str:
    """The name of the text encoder's output so many layers before the one that the model was trained with."""
    if not clip_skip:
        return output
    if output == "last_hidden_state":
        return f"skipped_states.{clip_skip}"
    return f"hidden_states.{int(output.rpartition('.')[2]) - clip_skip}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A model, ready to be opened."""

    model: str  # what the user called it; a plan that was read from a folder is called by the folder
    family: str
    fingerprint: str  # SHA-256 over the source's weights and configs
    profile: Profile
    components: Mapping[str, PlannedComponent]
    scheduler: Mapping[str, Any]  # diffusers' scheduler config
    tokenizers: Mapping[str, Path]  # text encoder -> the folder of its vocabulary
    prompting: Prompting
    scaling_factor: float  # latents of the U-Net = scaling_factor x (latents of the autoencoder - mean) / std
    latents_mean: tuple[float, ...]  # of each channel, as `latents_std`; both empty for all but a few models
    latents_std: tuple[float, ...]
    loads: tuple[Load, ...]
    # How `calotype build` made it: command, backend, versions, machine, figures, what was tried. Empty for a source.
    build: Mapping[str, Any] = field(default_factory=dict)
    samplers: Path | None = None  # the folder of `archive`, in a plan that was built

    @property
    def latents(self) -> Binding:
        """What is denoised: latents of the autoencoder, or pixels where the model has none."""
        coded = self.components.get("vae_decoder")
        return (coded or self.components["unet"]).inputs[0]

    @property
    def inpaints(self) -> bool:
        """Does the U-Net take a mask and the masked picture's latents beside the latents that it cleans?"""
        return self.components["unet"].inputs[0].dims[1] != self.latents.dims[1]

    @property
    def backend(self) -> str | None:
        """The backend that the plan was built for and proved on."""
        return self.build.get("backend")

    @property
    def model_id(self) -> str:
        """The first twelve digits of the fingerprint: enough to tell models apart in a picture's metadata."""
        return self.fingerprint[:12]


def write_plan(plan: Plan, folder: Path, *, sealed: bool = False) -> None:
    """`plan.json` into `folder`. `sealed` adds the stamp of every file there: the folder is whole as it stands."""
    manifest = {
        "version": VERSION,
        "family": plan.family,
        "fingerprint": plan.fingerprint,
        "profile": plan.profile.to_json(),
        "components": {c.name: _component_json(c) for c in plan.components.values()},
        "scheduler": dict(plan.scheduler),
        "tokenizers": {name: str(path) for name, path in plan.tokenizers.items()},
        "prompting": vars(plan.prompting),
        "scaling_factor": plan.scaling_factor,
        "latents_mean": plan.latents_mean,
        "latents_std": plan.latents_std,
        "loads": [vars(load) for load in plan.loads],
        "build": dict(plan.build),
        "samplers": None if plan.samplers is None else str(plan.samplers),
        "files": stamps(folder, beside=(MANIFEST,)) if sealed else {},
    }
    (folder / MANIFEST).write_text(json.dumps({**manifest, "digest": digest_of(manifest)}, indent=1))


def _component_json(component: PlannedComponent) -> dict[str, Any]:
    return {
        "inputs": [b.to_json() for b in component.inputs],
        "outputs": [b.to_json() for b in component.outputs],
        "artifacts": [
            {"form": a.form, "path": str(a.path), "precision": a.precision, "check": dict(a.check)}
            for a in component.artifacts
        ],
        "refused": dict(component.refused),
    }


def is_plan(folder: str | Path) -> bool:
    """Is there a plan in this folder? What cannot be looked at is none."""
    try:
        return (Path(folder).expanduser() / MANIFEST).exists()
    except (OSError, RuntimeError, ValueError):
        return False


def read_plan(folder: Path, *, sealed: bool = True) -> Plan:
    """The plan in `folder`, checked against the schema, and every file of it verified.

    A plan that is not `sealed` is the exporter's own, in the making: no file is listed, and paths may lead elsewhere.

    Raises:
        SourceError: it cannot be read, with the field and the command that builds it again.
    """
    data = _manifest(folder)
    again = f"build it again: {rebuild_command(data.get('build'), folder)}"
    if data.get("version") != VERSION:
        got = reprlib.repr(data.get("version"))
        raise SourceError(f"{folder} is a plan of version {got}, and {VERSION} is read here; {again}.")
    if data.pop("digest", None) != digest_of(data):
        raise SourceError(f"{folder / MANIFEST} is damaged or was changed; {again}.")
    try:
        check_manifest(data)
        if sealed:
            check_listed_files(folder, data["files"])
            verify(folder, stamps_from_json(data["files"]), mend=again)
            check_opened_files(folder, data)
    except (SchemaError, OSError, ValueError) as wrong:
        raise SourceError(f"the plan {folder / MANIFEST} cannot be used: {wrong}; {again}.") from None
    return _plan(folder, data)


def _manifest(folder: Path) -> dict[str, Any]:
    return read_json(
        folder / MANIFEST, f"build the plan again: {rebuild_command(None, folder)}", limit_bytes=_LARGEST_BYTES
    )


def _plan(folder: Path, data: Mapping[str, Any]) -> Plan:
    """From a manifest that was checked."""
    return Plan(
        model=str(folder),
        family=data["family"],
        fingerprint=data["fingerprint"],
        profile=Profile.from_json(data["profile"]),
        components={name: _component(folder, name, told) for name, told in data["components"].items()},
        scheduler=data["scheduler"],
        tokenizers={name: folder / path for name, path in data["tokenizers"].items()},
        prompting=Prompting.from_json(data["prompting"]),
        scaling_factor=data["scaling_factor"],
        latents_mean=tuple(data["latents_mean"]),
        latents_std=tuple(data["latents_std"]),
        loads=tuple(Load(**load) for load in data["loads"]),
        build=data["build"],
        samplers=None if data["samplers"] is None else folder / data["samplers"],
    )


def _component(folder: Path, name: str, data: Mapping[str, Any]) -> PlannedComponent:
    return PlannedComponent(
        name=name,
        inputs=tuple(Binding.from_json(b) for b in data["inputs"]),
        outputs=tuple(Binding.from_json(b) for b in data["outputs"]),
        artifacts=tuple(
            Artifact(form=a["form"], path=folder / a["path"], precision=a["precision"], check=a["check"])
            for a in data["artifacts"]
        ),
        refused=data["refused"],
    )
