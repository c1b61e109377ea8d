"""Models as they are found: a folder in diffusers' layout, a checkpoint in the original one, "demo", or a hub id.

An autoencoder and ControlNets beside a model are found the same ways.

Everything that can be wrong with a model's files is found here, before any library opens them: a missing folder, a
config that is no JSON, a pickle, a truncated weight file. Nothing of the user's is changed. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import calotype
from calotype.errors import SourceError
from calotype.files.digest import file_digest
from calotype.files.json_file import read_json
from calotype.plan.family import TEXT_ENCODERS, autoencoder_of, folder_of
from calotype.plan.network_check import check_network, token_rows
from calotype.plan.networks import controlnets_of
from calotype.text.tokenizer import MARKS, check_token_ids, tokenizer_files
from calotype.weights.types import check_not_quantized, check_types

from .hub import from_hub
from .misnamed import exported, kind_of_file, other_folder
from .single_file import opened
from .single_file_components import part_opened
from .weight_files import PICKLES, check_safetensors, count_weights, pickles_in, refusal_of_pickle, weight_files

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# What pictures depend on in a model_index.json.
_SAID = ("_class_name", "force_zeros_for_empty_prompt", "requires_aesthetics_score")
_KINDS = {  # what is named -> what it may be, and the class of diffusers that reads it from one file
    "model": (
        "a model is a folder in diffusers' layout, a .safetensors checkpoint, a plan, a hub id, or demo",
        "StableDiffusionPipeline",
    ),
    "vae": (
        "an autoencoder is a folder in diffusers' layout, a .safetensors file, or a hub id",
        "AutoencoderKL",
    ),
    "controlnet": (
        "a ControlNet is a folder in diffusers' layout, a .safetensors file, a hub id, or demo-canny",
        "ControlNetModel",
    ),
}
_SHIPPED = {"demo": "demo_model", "demo-canny": "demo_canny"}  # what comes with Calotype, and its folder


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model whose files are all there and whole."""

    model: str  # what the user called it
    folder: Path
    configs: Mapping[str, Mapping[str, Any]]  # of each folder of weights; model_index and scheduler
    folders: Mapping[str, Path]  # where each of them is, by the name it has in diffusers' layout: unet, controlnet, ...
    digests: Mapping[str, str]  # SHA-256 of the weights in each
    tokenizers: Mapping[str, Path]  # text encoder -> the folder of its vocabulary

    def weights_folder(self, component: str) -> Path:
        """Where the component's config and weights lie."""
        return self.folders[folder_of(component)]

    def weights_digest(self, component: str) -> str:
        """SHA-256 of the component's weights."""
        return self.digests[folder_of(component)]

    def check_unchanged(self, component: str) -> None:
        """Raise `SourceError` unless the component's weights are still those that were read."""
        folder, stem = self.weights_folder(component), stem_of(folder_of(component))
        if _digest(weight_files(folder, stem)) != self.weights_digest(component):
            raise SourceError(f"the weights in {folder} were changed after the model was loaded; load it again.")

    def weights_count(self, component: str) -> int:
        """How many numbers the folder of the component's weights holds."""
        return count_weights(self.weights_folder(component), stem_of(folder_of(component)))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over configs, weights and tokenizers: what the pictures depend on."""
        files = [
            path
            for folder in self.tokenizers.values()
            for path in (*tokenizer_files(folder), *(folder / name for name in MARKS))
            if path.is_file()
        ]
        vocabulary = [[path.name, file_digest(path)] for path in files]
        said = json.dumps([self.configs, self.digests, vocabulary], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()


def read_source(
    model: str | Path,
    controlnets: Sequence[str | Path] = (),
    vae: str | Path | None = None,
    *,
    offline: bool = False,
) -> Source:
    """Find a model, the ControlNets to go with it and an autoencoder in place of its own, and check their files.

    Of a ControlNet or an autoencoder in one `.safetensors`, what the file does not say is as the model has it: among
    that an autoencoder's scaling factor (`parts`). `offline` makes no connection for hub ids. Raises `SourceError` in a
    sentence that says what is wrong and where.
    """
    folder = find(model, offline=offline)
    index = _index(folder)
    kind = str(index.get("_class_name"))
    if kind not in TEXT_ENCODERS:
        raise SourceError(
            exported(folder) or f"{folder} holds a {kind:.80}; this version reads {', '.join(TEXT_ENCODERS)}."
        )
    coded = autoencoder_of(kind)
    folders = {name: folder / name for name in (*TEXT_ENCODERS[kind], "unet")}
    folders |= {"vae": folder / coded} if coded else {}
    if not TEXT_ENCODERS[kind] and (controlnets or vae is not None):
        raise SourceError(f"{folder} holds a {kind}, which takes no ControlNet and no autoencoder.")
    nets = [_part(said, "controlnet", folders, offline) for said in controlnets]
    folders |= {f"controlnet_{i}" if i else "controlnet": net for i, net in enumerate(nets)}
    if vae is not None:
        folders["vae"] = _part(vae, "vae", folders, offline)
    configs = {name: read_json(path / "config.json", f"the {name}'s config") for name, path in folders.items()}
    _check_classes(configs, folders, vae)
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json", "the scheduler's config")
    tokenizers = {encoder: folder / name for encoder, name in TEXT_ENCODERS[kind].items()}
    for vocabulary in tokenizers.values():
        tokenizer_files(vocabulary)
    files = {name: weight_files(path, stem_of(name)) for name, path in folders.items()}  # all headers, then all digests
    for name, path in folders.items():
        _check_network(name, path, configs[name], files[name], tokenizers.get(name))
    said = {name: index[name] for name in _SAID if name in index}
    return Source(
        model=str(model),
        folder=folder,
        configs={**configs, "scheduler": scheduler, "model_index": said},
        folders=folders,
        digests={name: _digest(each) for name, each in files.items()},
        tokenizers=tokenizers,
    )


def _check_network(
    name: str, folder: Path, config: Mapping[str, Any], files: Iterable[Path], tokenizer: Path | None
) -> None:
    """`SourceError` unless a network's weights are floats as its config says, and every token has an embedding."""
    check_not_quantized(folder / "config.json", config)
    shapes: dict[str, Sequence[int]] = {}
    for file in files:
        header = check_safetensors(file)
        check_types(file, header.types)
        shapes |= header.shapes
    check_network(folder / "config.json", name, config, shapes)
    if tokenizer is not None:
        check_token_ids(tokenizer, token_rows(shapes) or 0, folder)


def _check_classes(configs: Mapping[str, Any], folders: Mapping[str, Path], vae: str | Path | None) -> None:
    """`SourceError` unless the parts that were named are what they were named as."""
    for name in controlnets_of(configs):
        if configs[name].get("_class_name") != "ControlNetModel":
            told = configs[name].get("_class_name")
            raise SourceError(f"{folders[name]} holds a {told}; a ControlNet is a folder of a ControlNetModel.")
    if vae is not None and configs["vae"].get("_class_name") not in ("AutoencoderKL", "AutoencoderTiny"):
        told = configs["vae"].get("_class_name")
        raise SourceError(f"{folders['vae']} holds a {told}; an autoencoder is an AutoencoderKL or an AutoencoderTiny.")


def stem_of(name: str) -> str:
    """How a folder's file of weights is called: as transformers does for text encoders, else as diffusers."""
    return "model" if name.startswith("text_encoder") else "diffusion_pytorch_model"


def find(model: str | Path, *, offline: bool = False) -> Path:
    """The model's folder: fetched first if `model` is a hub id, rewritten if it is a checkpoint in one file."""
    path = _located(model, "model", offline)
    return opened(path) if path.is_file() else path


def _located(said: str | Path, name: str, offline: bool) -> Path:
    """The folder, or the file of safetensors, that was named as `name`. Raises `SourceError`."""
    if str(said) in _SHIPPED:
        return Path(calotype.__file__).parent / _SHIPPED[str(said)]
    kinds, elder = _KINDS[name]
    try:
        path = Path(said).expanduser()
        if path.is_dir():
            return path.absolute()
        is_file = path.is_file()
    except (OSError, RuntimeError, ValueError) as failed:  # no permission, too long a name, no such home, a NUL
        raise SourceError(f"{said} cannot be looked at ({failed}); {kinds}.") from None
    of_weights = path.suffix in (".safetensors", *PICKLES)
    if is_file:
        if path.suffix == ".safetensors":
            return path.absolute()
        raise SourceError(refusal_of_pickle(path, elder) if of_weights else f"{path} is {kind_of_file(path)}; {kinds}.")
    if _HUB_ID.fullmatch(str(said)) and not of_weights:
        return from_hub(str(said), offline=offline)
    raise SourceError(f"there is no {'file' if of_weights else 'folder'} {path}; {kinds}.")


def _part(said: str | Path, name: str, own: Mapping[str, Path], offline: bool) -> Path:
    """The folder of a network that was named by itself; `own` are those of the model. Raises `SourceError`."""
    path = _located(said, name, offline)
    if path.is_file():
        with_config = path.name == f"{stem_of(name)}.safetensors" and path.with_name("config.json").is_file()
        return path.parent if with_config else part_opened(path, name, own)
    if (path / "model_index.json").is_file():
        inside = path / name
        mend = f"name its {name}, {inside}" if inside.is_dir() else f"it has no {name} to be named"
        raise SourceError(f"{said} is a whole model; {mend}.")
    single = sorted(path.glob("*.safetensors"))
    if single and not (path / "config.json").is_file():
        if other := other_folder(path, name):
            raise SourceError(other)
        raise SourceError(f"{path / 'config.json'} is missing; a {name} in one file is named itself: {single[0]}")
    return path


def _index(folder: Path) -> dict[str, Any]:
    """What the folder's `model_index.json` says. Raises `SourceError` that knows what may lie there in its place."""
    path = folder / "model_index.json"
    if not path.exists():
        if other := other_folder(folder):
            raise SourceError(other)
        single, pickled = [p.name for p in sorted(folder.glob("*.safetensors"))], pickles_in(folder)
        if single:
            raise SourceError(f"{path} is missing; a checkpoint in one file is named itself: {folder / single[0]}")
        if pickled:
            raise SourceError(refusal_of_pickle(folder / pickled[0]))
    return read_json(path, "it is the list of parts that a model in diffusers' layout begins with")


def _digest(files: Iterable[Path]) -> str:
    return hashlib.sha256("".join(file_digest(f) for f in files).encode()).hexdigest()
