"""Models as they are found: a folder in diffusers' layout, "demo", or a hub id. Read, checked, never changed.

Everything that can be wrong with a model's files is found here, before any library opens them: a missing folder, a
config that is no JSON, a pickle, a truncated weight file. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import calotype
from calotype.errors import SourceError, first_line
from calotype.export.digest import file_digest
from calotype.prompt import tokenizer_files

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_CONFIGS = {
    "text_encoder": "text_encoder/config.json",
    "unet": "unet/config.json",
    "vae": "vae/config.json",
    "scheduler": "scheduler/scheduler_config.json",
}
_WEIGHTS = {
    "text_encoder": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
_MODELS = "a model is a folder in diffusers' layout, a plan, a hub id, or demo"
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model whose files are all there and whole."""

    model: str  # what the user called it
    folder: Path
    configs: Mapping[str, Mapping[str, Any]]  # text_encoder, unet, vae, scheduler
    digests: Mapping[str, str]  # SHA-256 of each component's weights, by folder

    @property
    def fingerprint(self) -> str:
        """SHA-256 over configs, weights and vocabulary: what the pictures depend on."""
        vocabulary = [file_digest(path) for path in tokenizer_files(self.folder / "tokenizer")]
        said = json.dumps([self.configs, self.digests, vocabulary], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()


def read_source(model: str | Path) -> Source:
    """Find a model and check its files. Raises `SourceError` in a sentence that says what is wrong and where."""
    folder = find(model)
    index = _json(folder / "model_index.json", "it is the list of parts that a model in diffusers' layout begins with")
    kind = index.get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise SourceError(
            f"{folder} holds a {kind}; this version reads StableDiffusionPipeline (Stable Diffusion 1.x)."
        )
    configs = {name: _json(folder / path, f"the {name}'s config") for name, path in _CONFIGS.items()}
    tokenizer_files(folder / "tokenizer")
    digests = {name: _digest(weight_files(folder / name, stem)) for name, stem in _WEIGHTS.items()}
    return Source(model=str(model), folder=folder, configs=configs, digests=digests)


def find(model: str | Path) -> Path:
    """The model's folder, downloaded first if `model` is a hub id."""
    if model == "demo":
        return Path(calotype.__file__).parent / "demo_model"
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
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                hub_id,
                allow_patterns=["*.json", "*/*.json", "*/*.txt", "*/*.safetensors"],
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


def _digest(files: Iterable[Path]) -> str:
    return hashlib.sha256("".join(file_digest(f) for f in files).encode()).hexdigest()
