"""Models as they are found: a folder in diffusers' layout, one that ships, or a hub id. Read, checked, never changed.

Everything that can be wrong with a model's files is found here, before any library opens them: a missing folder, a
config that is no JSON, a pickle, a truncated weight file. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import calotype
from calotype.digest import file_digest
from calotype.errors import SourceError, first_line
from calotype.family import TEXT_ENCODERS, folder_of
from calotype.networks import controlnets_of
from calotype.prompt import tokenizer_files

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_DIFFUSERS = "diffusion_pytorch_model"
# What pictures depend on in a model_index.json.
_SAID = ("_class_name", "force_zeros_for_empty_prompt", "requires_aesthetics_score")
_MODELS = "a model is a folder in diffusers' layout, a plan, a hub id, or demo"
_SHIPPED = {"demo": "demo_model", "demo-canny": "demo_canny"}  # what comes with Calotype, and its folder
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model whose files are all there and whole."""

    model: str  # what the user called it
    folder: Path
    configs: Mapping[str, Mapping[str, Any]]  # of each folder of weights; model_index and scheduler
    folders: Mapping[str, Path]  # where each of them is, by the name it has in diffusers' layout: unet, controlnet, ...
    digests: Mapping[str, str]  # SHA-256 of the weights in each

    @property
    def tokenizers(self) -> dict[str, Path]:
        """Text encoder -> the folder of its vocabulary."""
        names = TEXT_ENCODERS[self.configs["model_index"]["_class_name"]]
        return {encoder: self.folder / name for encoder, name in names.items()}

    def weights_folder(self, component: str) -> Path:
        """Where the component's config and weights lie."""
        return self.folders[folder_of(component)]

    def weights_digest(self, component: str) -> str:
        """SHA-256 of the component's weights."""
        return self.digests[folder_of(component)]

    def weights_count(self, component: str) -> int:
        """How many numbers the folder of the component's weights holds."""
        return count_weights(self.weights_folder(component), _stem(folder_of(component)))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over configs, weights and vocabularies: what the pictures depend on."""
        vocabulary = [file_digest(path) for each in self.tokenizers.values() for path in tokenizer_files(each)]
        said = json.dumps([self.configs, self.digests, vocabulary], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()


def read_source(model: str | Path, controlnets: Sequence[str | Path] = (), vae: str | Path | None = None) -> Source:
    """Find a model, the ControlNets to go with it and an autoencoder in place of its own, and check their files.

    Raises `SourceError` in a sentence that says what is wrong and where.
    """
    folder = find(model)
    index = _json(folder / "model_index.json", "it is the list of parts that a model in diffusers' layout begins with")
    kind = str(index.get("_class_name"))
    if kind not in TEXT_ENCODERS:
        raise SourceError(f"{folder} holds a {kind}; this version reads {', '.join(TEXT_ENCODERS)}.")
    coded = ("vae",) if TEXT_ENCODERS[kind] else ()  # without text, pixels themselves are denoised
    folders = {name: folder / name for name in (*TEXT_ENCODERS[kind], "unet", *coded)}
    if not coded and (controlnets or vae is not None):
        raise SourceError(f"{folder} holds a {kind}, which takes no ControlNet and no autoencoder.")
    folders |= {f"controlnet_{i}" if i else "controlnet": find(said) for i, said in enumerate(controlnets)}
    if vae is not None:
        folders["vae"] = find(vae)
    configs = {name: _json(path / "config.json", f"the {name}'s config") for name, path in folders.items()}
    for name in controlnets_of(configs):
        if configs[name].get("_class_name") != "ControlNetModel":
            told = configs[name].get("_class_name")
            raise SourceError(f"{folders[name]} holds a {told}; a ControlNet is a folder of a ControlNetModel.")
    if vae is not None and configs["vae"].get("_class_name") not in ("AutoencoderKL", "AutoencoderTiny"):
        told = configs["vae"].get("_class_name")
        raise SourceError(f"{folders['vae']} holds a {told}; an autoencoder is an AutoencoderKL or an AutoencoderTiny.")
    scheduler = _json(folder / "scheduler" / "scheduler_config.json", "the scheduler's config")
    said = {name: index[name] for name in _SAID if name in index}
    source = Source(
        model=str(model),
        folder=folder,
        configs={**configs, "scheduler": scheduler, "model_index": said},
        folders=folders,
        digests={name: _digest(weight_files(path, _stem(name))) for name, path in folders.items()},
    )
    for vocabulary in source.tokenizers.values():
        tokenizer_files(vocabulary)
    return source


def _stem(name: str) -> str:
    """The name of a weight file: transformers' for text encoders, else diffusers'."""
    return "model" if name.startswith("text_encoder") else _DIFFUSERS


def find(model: str | Path) -> Path:
    """The model's folder, downloaded first if `model` is a hub id."""
    if model in _SHIPPED:
        return Path(calotype.__file__).parent / _SHIPPED[str(model)]
    try:
        folder = Path(model).expanduser()
        if folder.is_dir():
            return folder.absolute()
        if folder.is_file():
            raise SourceError(f"{folder} is a file; {_MODELS}.")
    except (OSError, RuntimeError, ValueError) as failed:  # no permission, too long a name, no such home, a NUL
        raise SourceError(f"{model} cannot be looked at ({failed}); {_MODELS}.") from None
    if _HUB_ID.fullmatch(str(model)):
        return _download(str(model))
    raise SourceError(f"there is no folder {folder}; {_MODELS}.")


def _download(hub_id: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise SourceError(
            f"there is no folder {hub_id}; to have it from the hub, pip install 'calotype[build]'."
        ) from None
    try:
        return Path(
            snapshot_download(
                hub_id,
                allow_patterns=["*.json", "*/*.json", "*/*.txt", "*/*.safetensors", f"{_DIFFUSERS}*.safetensors"],
                ignore_patterns=["*.fp16.*", "*non_ema*", "safety_checker/*", "feature_extractor/*"],
            )
        )
    except Exception as failed:  # the hub's client and its HTTP library raise kinds of their own
        raise SourceError(
            f"there is no folder {hub_id}, and it cannot be had from the hub: {first_line(failed)}"
        ) from None


def _json(path: Path, what: str) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(f"{path} is missing; {what}.") from None
    except (OSError, ValueError) as broken:
        raise SourceError(f"{path} cannot be read ({broken}); {what}.") from None
    if not isinstance(data, dict):
        raise SourceError(f"{path} is JSON, but no object; {what}.")
    return data


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors of one component, each checked to be whole: one file, or the shards of an index."""
    whole, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if whole.is_file():
        files = [whole]
    elif index.is_file():
        files = _shards(folder, _json(index, "the list of shards"))
    else:
        raise SourceError(_no_weights(folder, whole))
    for file in files:
        check_safetensors(file)
    return files


def _shards(folder: Path, index: Mapping[str, Any]) -> list[Path]:
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise SourceError(f"the list of shards in {folder} says no files; fetch it again.")
    return [folder / name for name in sorted(set(shards.values()))]


def _no_weights(folder: Path, wanted: Path) -> str:
    pickles = [p.name for p in sorted(folder.glob("*")) if p.suffix in _PICKLES]
    if pickles:
        return (
            f"{folder / pickles[0]} is a pickle, which can run any code when it is opened, so it is not read. Convert "
            "it: load the model with diffusers and save it with save_pretrained(..., safe_serialization=True)."
        )
    return f"{wanted} is missing; weights are read from safetensors."


def check_safetensors(path: Path) -> None:
    """`SourceError` unless the file is as long as its header says (https://github.com/huggingface/safetensors)."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
            header: Any = json.loads(file.read(length)) if length <= min(size, 100_000_000) else None
        ends = [int(e["data_offsets"][1]) for n, e in header.items() if n != "__metadata__"]
    except OSError as broken:
        raise SourceError(f"{path} cannot be read ({broken.strerror}).") from None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise SourceError(f"{path} is no safetensors file, or a damaged one; fetch it again.") from None
    whole = 8 + length + max(ends, default=0)
    if size != whole:
        raise SourceError(f"{path} is {size} bytes long and should be {whole}; fetch it again.")


def count_weights(folder: Path, stem: str) -> int:
    """How many numbers the component's safetensors hold, by their headers."""
    return sum(_count(file) for file in weight_files(folder, stem))


def _count(path: Path) -> int:
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _digest(files: Iterable[Path]) -> str:
    return hashlib.sha256("".join(file_digest(f) for f in files).encode()).hexdigest()
