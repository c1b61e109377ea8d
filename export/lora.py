"""LoRA files fused into a model's weights before anything is traced: the store keeps the fused weights.

Reading, the layouts (diffusers', kohya's) and the sums are diffusers' and peft's; what is ours is that every tensor of
a file must find its place, and that fused weights are found again by what they were made from.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from calotype.digest import file_digest
from calotype.errors import SourceError, first_line
from calotype.export.child import in_child
from calotype.export.source import Source, check_safetensors, read_source
from calotype.export.store import fetch, key_of
from calotype.export.versions import versions
from calotype.family import TEXT_ENCODERS

FUSER = 1  # raised when the way weights are fused changes what comes out
_NAME = "fused"  # of the one adapter that is in the networks at a time
_PARTNERS = (("lora_A", "lora_B"), ("lora_down", "lora_up"), ("lora.down", "lora.up"))
# Parts of diffusers' pipelines that its loaders do without.
_PARTS = {"text_encoder", "vae", "scheduler", "tokenizer", "tokenizer_2", "safety_checker", "feature_extractor"}


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A file and how strongly it counts."""

    path: Path
    scale: float


def lora_from(said: str | Path) -> Lora:
    """FILE or FILE:0.8, as a user writes it. Raises `SourceError` unless there is such a file, and it is whole."""
    path, scale = Path(said).expanduser(), 1.0
    if not path.is_file() and ":" in str(said):
        name, _, number = str(said).rpartition(":")
        path = Path(name).expanduser()
        try:
            scale = float(number)
        except ValueError:
            scale = math.nan
        if not -10 <= scale <= 10:
            raise SourceError(f"{said}: a LoRA's scale is a number from -10 to 10, as in FILE:0.8; got {number!r}.")
    if not path.is_file():
        raise SourceError(f"there is no LoRA file {path}; name a .safetensors file, as in FILE or FILE:0.8.")
    if path.suffix != ".safetensors":
        raise SourceError(f"{path} is no .safetensors file; a LoRA is read from nothing else, since pickles run code.")
    check_safetensors(path)
    return Lora(path=path, scale=scale)


def fuse(source: Source, said: Sequence[str | Path]) -> Source:
    """The source with these LoRAs in its weights: the folders of the networks they change are entries of the store.

    Raises `SourceError` where a file is missing, is no LoRA, or does not fit the model.
    """
    loras = [lora_from(each) for each in said]
    if not loras:
        return source
    if not TEXT_ENCODERS[source.configs["model_index"]["_class_name"]]:
        raise SourceError(f"{source.model} is no Stable Diffusion, and takes no LoRA.")
    if importlib.util.find_spec("peft") is None:
        raise SourceError("LoRAs need peft, which is not installed (pip install peft)")
    names = [*TEXT_ENCODERS[source.configs["model_index"]["_class_name"]], "unet"]
    key = key_of(
        {
            "fused": {name: [source.digests[name], source.configs[name]] for name in names},
            "loras": [[file_digest(lora.path), lora.scale] for lora in loras],
            "tools": {**versions(), "peft": version("peft")},
            "fuser": FUSER,
        }
    )

    def make(empty: Path) -> Mapping[str, Any]:
        files = [[str(lora.path), lora.scale] for lora in loras]
        done = in_child(
            "fusing the LoRAs", "calotype.export.lora:fuse_into", out=str(empty), model=source.model, loras=files
        )
        return {"changed": done.value, "peak_bytes": done.peak_bytes}

    folder, notes = fetch(
        key, make, label={"component": ", ".join(names), "kind": "fused LoRAs", "model": source.model}
    )
    changed = {name: folder / name for name in notes["changed"]}
    digests = {name: hashlib.sha256(f"{key} {name}".encode()).hexdigest() for name in changed}
    return replace(source, folders={**source.folders, **changed}, digests={**source.digests, **digests})


def fuse_into(*, out: str, model: str, loras: Sequence[tuple[str, float]]) -> list[str]:
    """In a child process: save the networks that the LoRAs change into `out`; their names."""
    source, folder = read_source(model), Path(out)
    names = [*TEXT_ENCODERS[source.configs["model_index"]["_class_name"]], "unet"]
    return _fuse_into(folder, source, names, [Lora(path=Path(path), scale=scale) for path, scale in loras])


def _fuse_into(folder: Path, source: Source, names: Sequence[str], loras: Sequence[Lora]) -> list[str]:
    from calotype.modules import load_module

    networks: dict[str, Any] = {name: load_module(name, source.folders[name]).model for name in names}
    changed: set[str] = set()
    with _quiet():
        pipe = _pipeline(source, networks)
        for lora in loras:
            changed |= _fuse_one(lora, pipe, networks)
        for name in changed:
            networks[name].save_pretrained(folder / name)
    return sorted(changed)


def _pipeline(source: Source, networks: Mapping[str, Any]) -> Any:
    """diffusers' loaders are methods of its pipelines: one with nothing but the networks."""
    import diffusers

    kind = getattr(diffusers, source.configs["model_index"]["_class_name"])
    lacking = dict.fromkeys(set(inspect.signature(kind.__init__).parameters) & _PARTS - set(networks))
    return kind(**networks, **lacking)


def _fuse_one(lora: Lora, pipe: Any, networks: Mapping[str, Any]) -> set[str]:
    """Add one LoRA to the networks' weights; the names of those that it changes."""
    try:
        tensors, alphas, metadata = pipe.lora_state_dict(
            _tensors(lora), unet_config=networks["unet"].config, return_lora_metadata=True
        )
        said = {"network_alphas": alphas, "metadata": metadata, "adapter_name": _NAME}
        for name, network in networks.items():
            if any(key.startswith(f"{name}.") for key in tensors):
                load = pipe.load_lora_into_unet if name == "unet" else pipe.load_lora_into_text_encoder
                load(tensors, **{name.removesuffix("_2"): network}, **said, **_prefix(name))
    except SourceError:
        raise
    except Exception as failed:  # diffusers, peft and transformers raise kinds of their own
        told = first_line(RuntimeError(" ".join(str(failed).split())))
        raise SourceError(f"{lora.path} does not fit the model, or is no LoRA: {told}") from failed
    changed = _changed(lora, tensors, networks)
    pipe.fuse_lora(components=sorted(changed), lora_scale=lora.scale, adapter_names=[_NAME])
    pipe.unload_lora_weights()
    return changed


def _tensors(lora: Lora) -> dict[str, Any]:
    """All of the file. Raises `SourceError` for what diffusers would leave out, or stumble over."""
    from safetensors.torch import load_file

    tensors = load_file(lora.path)
    if any("dora_scale" in key or "lora_magnitude_vector" in key for key in tensors):
        raise SourceError(f"{lora.path} is a DoRA, whose magnitudes this version cannot fuse; take an ordinary LoRA.")
    for one, other in [*_PARTNERS, *(pair[::-1] for pair in _PARTNERS)]:
        alone = [key for key in tensors if one in key and key.replace(one, other) not in tensors]
        if alone:
            raise SourceError(f"{lora.path} is no whole LoRA: {alone[0]} has no partner; fetch it again.")
    return tensors


def _prefix(name: str) -> dict[str, str]:
    return {} if name == "unet" else {"prefix": name}


def _changed(lora: Lora, tensors: Mapping[str, Any], networks: Mapping[str, Any]) -> set[str]:
    """The networks in which this LoRA has tensors. Raises `SourceError` naming one that found no place."""
    wanted = {f"{name}.{key}" for name in networks for key in _in_pefts_names(name, tensors)}
    placed = {
        f"{name}.{key.replace(f'.{_NAME}.', '.').removeprefix('text_model.')}"
        for name, network in networks.items()
        for key, _ in network.named_parameters()
        if f".{_NAME}." in key
    }
    elsewhere = {key for key in tensors if key.split(".")[0] not in networks}
    lost = sorted((wanted ^ placed) | elsewhere)
    if lost or not placed:
        told = f"{len(lost)} of its tensors have no place there, such as {lost[0]}" if lost else "it is empty"
        raise SourceError(f"{lora.path} does not fit the model: {told}. Take a LoRA of the model's own family.")
    return {key.split(".")[0] for key in placed}


def _in_pefts_names(name: str, tensors: Mapping[str, Any]) -> list[str]:
    from diffusers import utils

    own = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
    if not own:
        return []
    if name != "unet":
        own = utils.convert_state_dict_to_peft(utils.convert_state_dict_to_diffusers(own))
    elif not any("lora_A" in key for key in own):
        own = utils.convert_unet_state_dict_to_peft(own)
    return [key.removeprefix("text_model.") for key in own]


@contextmanager
def _quiet() -> Iterator[None]:
    """What the libraries have to say of tensors without a place is an error of ours, or nothing."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    kept = [(log, log.get_verbosity()) for log in (of_diffusers, of_transformers)]
    try:
        for log, _ in kept:
            log.set_verbosity_error()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in kept:
            log.set_verbosity(level)
