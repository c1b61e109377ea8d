"""The plan of a model: its components, their tensors and artifacts, and the manifest `plan.json`.

Paths in a manifest are relative to its folder, or absolute for weights of a source that are not copied. The manifest
holds the size and SHA-256 of every other file of the folder and a digest of itself, so that no damaged or exchanged
file is opened. Knows nothing of how artifacts are built (`calotype.export`) or run (`backends`).
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
from .bindings import Binding, Network, bindings_from_json
from .command import rebuild_command
from .files import check_listed_files, check_opened_files
from .image_input import ImageInput
from .image_prompts.layers import ImagePrompting
from .integrity import stamps, stamps_from_json, verify
from .manifest import check_manifest
from .profile import Profile

MANIFEST = "plan.json"
VERSION = 5
_LARGEST_BYTES = 16 << 20  # of a manifest; the largest model needs a hundredth of it


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file or folder that a backend can open: `form` is "onnx" (a file) or "diffusers" (a folder with weights).

    `check` holds the results of the comparison with the eager float32 reference. It is empty for the reference itself.
    """

    form: str
    path: Path
    precision: str
    check: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class PlannedComponent(Network):
    """A network with its artifacts.

    `refused` maps a form of artifact to the reason why it is missing: it was built, but did not match the reference.
    """

    artifacts: tuple[Artifact, ...]
    refused: Mapping[str, str]

    def with_artifacts(self, *artifacts: Artifact) -> PlannedComponent:
        """Return the component with these artifacts, the preferred one first."""
        return replace(self, artifacts=artifacts)

    def with_refusal(self, form: str, reason: str) -> PlannedComponent:
        """Return the component with the reason why it has no artifact of this form."""
        return replace(self, refused={**self.refused, form: reason})

    def artifact(self, form: str) -> Artifact | None:
        """Return the artifact of this form, or None."""
        return next((a for a in self.artifacts if a.form == form), None)


@dataclass(frozen=True, kw_only=True)
class Prompting:
    """The outputs of text encoders that the U-Net takes, as pairs (text encoder, name of its output).

    `states` are concatenated along their width. `pooled` is the U-Net's input `text_embeds`, if it has one. With
    `zero_negative` a missing negative prompt is encoded as zeros, else as the empty text.
    """

    states: tuple[tuple[str, str], ...]
    pooled: tuple[str, str] | None
    zero_negative: bool

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Prompting:
        """Return the prompting that a plan's manifest holds."""
        states = tuple((str(component), str(output)) for component, output in data["states"])
        pooled = data["pooled"] and (str(data["pooled"][0]), str(data["pooled"][1]))
        return cls(states=states, pooled=pooled, zero_negative=bool(data["zero_negative"]))


def skipping(output: str, clip_skip: int | None) -> str:
    """Return the name of the text encoder's output that is `clip_skip` layers before `output`."""
    if not clip_skip:
        return output
    if output == "last_hidden_state":
        return f"skipped_states.{clip_skip}"
    return f"hidden_states.{int(output.rpartition('.')[2]) - clip_skip}"


@dataclass(frozen=True, kw_only=True)
class ModelFields:
    """What a plan takes unchanged from the description of its model."""

    components: Mapping[str, Network]
    profile: Profile
    prompting: Prompting
    scaling_factor: float  # latents of the U-Net = scaling_factor x (latents of the autoencoder - mean) / std
    latents_mean: tuple[float, ...]  # per channel, like `latents_std`; both are empty for most models
    latents_std: tuple[float, ...]
    loads: tuple[Load, ...]
    image_input: ImageInput | None = None
    image_prompts: ImagePrompting | None = None

    @property
    def latents(self) -> Binding:
        """The binding of the denoised tensor: latents, or pixels for a model without an autoencoder.

        A clip has frames: before the channels in a video model, after them with motion modules, as in diffusers.
        """
        unet = self.components["unet"]
        return unet.inputs[0] if self.animates else self.components.get("vae_decoder", unet).inputs[0]

    @property
    def latent_channels(self) -> int:
        """The channels of the denoised tensor."""
        return int(self.latents.dims[1 if self.animates else -3])

    @property
    def makes_clips(self) -> bool:
        """Whether a call generates clips: of an image with a video model, or of a prompt with motion modules."""
        return self.profile.frames is not None

    @property
    def animates(self) -> bool:
        """Whether the U-Net has motion modules, which make a clip of a prompt (AnimateDiff)."""
        return self.makes_clips and bool(self.prompting.states)

    @property
    def inpaints(self) -> bool:
        """Tell whether the U-Net is an inpainting model: it also takes a mask and the latents of the masked image."""
        return self.takes("mask")

    def takes(self, *kinds: str) -> bool:
        """Tell whether the U-Net takes an image in one of these ways (`ImageInput.kind`)."""
        return self.image_input is not None and self.image_input.kind in kinds

    @property
    def sees(self) -> bool:
        """Whether a vision encoder's vector of the image stands in place of text."""
        return self.image_input is not None and self.image_input.sees


@dataclass(frozen=True, kw_only=True)
class Plan(ModelFields):
    """A model that can be loaded."""

    model: str  # the name that the user passed, or the folder of the plan
    family: str
    fingerprint: str  # SHA-256 over the source's weights and configs
    components: Mapping[str, PlannedComponent]
    scheduler: Mapping[str, Any]  # diffusers' scheduler config
    tokenizers: Mapping[str, Path]  # text encoder -> the folder of its vocabulary
    # The record of `calotype build`: options, backend, versions, machine, measurements, trials. Empty for a source.
    build: Mapping[str, Any] = field(default_factory=dict)
    samplers: Path | None = None  # the folder of `archive`, in a built plan
    depth_estimator: Path | None = None  # the folder of transformers' DPT and its preprocessor's config

    @property
    def backend(self) -> str | None:
        """The backend that the plan was built for and evaluated on; None for a source."""
        return self.build.get("backend")

    @property
    def model_id(self) -> str:
        """The first twelve digits of the fingerprint, which identify the model in the metadata of an image."""
        return self.fingerprint[:12]


def write_plan(plan: Plan, folder: Path, *, sealed: bool = False) -> None:
    """Write `plan.json` into `folder`. `sealed` adds size and SHA-256 of every file of the complete folder."""
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
        "image_input": plan.image_input and vars(plan.image_input),
        **({"image_prompts": vars(plan.image_prompts)} if plan.image_prompts else {}),
        "build": dict(plan.build),
        "samplers": None if plan.samplers is None else str(plan.samplers),
        "depth_estimator": None if plan.depth_estimator is None else str(plan.depth_estimator),
        "files": stamps(folder, exclude=(MANIFEST,)) if sealed else {},
    }
    (folder / MANIFEST).write_text(json.dumps({**manifest, "digest": digest_of(manifest)}, indent=1))


def _component_json(component: PlannedComponent) -> dict[str, Any]:
    return {
        **component.bindings_json(),
        "artifacts": [{**vars(a), "path": str(a.path)} for a in component.artifacts],
        "refused": dict(component.refused),
    }


def is_plan(folder: str | Path) -> bool:
    """Tell whether a folder holds a plan. A folder that cannot be read does not."""
    try:
        return (Path(folder).expanduser() / MANIFEST).exists()
    except (OSError, RuntimeError, ValueError):
        return False


def read_plan(folder: Path, *, sealed: bool = True) -> Plan:
    """Read the plan in `folder`, check it against the schema and verify all of its files.

    With `sealed=False` it reads an unfinished plan of the exporter: it lists no files, and paths may leave the folder.

    Raises:
        SourceError: the plan is not valid. The message has the field and the command that builds the plan again.
    """
    advice = f"build the plan again: {rebuild_command(None, folder)}"
    data = read_json(folder / MANIFEST, advice, limit_bytes=_LARGEST_BYTES)
    advice = f"build it again: {rebuild_command(data.get('build'), folder)}"
    if data.get("version") != VERSION:
        got = reprlib.repr(data.get("version"))
        message = f"cannot read the plan {folder}: got version {got}, expected {VERSION}; {advice}."
        raise SourceError(message, path=folder / MANIFEST, field="version")
    if data.pop("digest", None) != digest_of(data):
        raise SourceError(f"{folder / MANIFEST} is damaged or was changed; {advice}.", path=folder / MANIFEST)
    try:
        check_manifest(data)
        if sealed:
            check_listed_files(folder, data["files"])
            verify(folder, stamps_from_json(data["files"]), advice=advice)
            check_opened_files(folder, data)
    except (SchemaError, OSError, ValueError) as error:
        message, field = f"cannot read the plan {folder / MANIFEST}: {error}; {advice}.", getattr(error, "field", None)
        raise SourceError(message, path=folder / MANIFEST, field=field) from None
    return _plan(folder, data)


def _plan(folder: Path, data: Mapping[str, Any]) -> Plan:
    return Plan(
        model=str(folder),
        family=data["family"],
        fingerprint=data["fingerprint"],
        profile=Profile.from_json(data["profile"]),
        components={name: _component(folder, name, component) for name, component in data["components"].items()},
        scheduler=data["scheduler"],
        tokenizers={name: folder / path for name, path in data["tokenizers"].items()},
        prompting=Prompting.from_json(data["prompting"]),
        scaling_factor=data["scaling_factor"],
        latents_mean=tuple(data["latents_mean"]),
        latents_std=tuple(data["latents_std"]),
        loads=tuple(Load(**load) for load in data["loads"]),
        image_input=ImageInput.from_json(data["image_input"]),
        image_prompts=ImagePrompting.from_json(data.get("image_prompts")),
        build=data["build"],
        samplers=None if data["samplers"] is None else folder / data["samplers"],
        depth_estimator=None if data["depth_estimator"] is None else folder / data["depth_estimator"],
    )


def _component(folder: Path, name: str, data: Mapping[str, Any]) -> PlannedComponent:
    artifacts = tuple(Artifact(**{**artifact, "path": folder / artifact["path"]}) for artifact in data["artifacts"])
    return PlannedComponent(name=name, artifacts=artifacts, refused=data["refused"], **bindings_from_json(data))
