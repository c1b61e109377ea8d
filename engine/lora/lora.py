"""LoRA files: parse the user's argument, read the files and match their tensors to layers.

Every tensor of a file must match a layer and its shape. `formats` knows the names of tensors, and
`adapters` which update they are. The caller passes the networks and updates their weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..errors import SourceError, first_line
from ..files.digest import digest_of, file_digest
from ..weights.delta import Term, WeightDelta, WeightDeltas
from ..weights.safetensors import TensorFile
from .adapters import is_complete, mismatch, term_of
from .formats import TensorTarget, kind_of, layers_by_name, tensor_target
from .peft_metadata import settings_of

READER = 3  # increase when the same file changes weights in another way
_UNSET = object()
_OF_DIFFUSERS = "pytorch_lora_weights.safetensors"
_OF_PEFT = "adapter_config.json"  # holds the alpha
_MAX_LISTED = 8  # names in a message
_MAX_FLOAT = float(np.finfo(np.float32).max)
# cross_attention_dim -> model family
_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
Parts: TypeAlias = Mapping[tuple[str, str], Mapping[str, str]]  # (component, layer) -> part -> key
Named: TypeAlias = str | Path
Weighed: TypeAlias = Named | tuple[Named, float] | Mapping[Named, float]
LoraLike: TypeAlias = Weighed | Iterable[Weighed] | None


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A LoRA file and its weight."""

    path: Path
    weight: float

    @cached_property
    def digest(self) -> str:
        """The file's SHA-256, computed on first access, after the file was checked. Raises `SourceError`."""
        return file_digest(self.path)

    def __str__(self) -> str:
        return f"{self.path}:{self.weight!r}"


def parse_loras(loras: LoraLike) -> tuple[Lora, ...]:
    """Parse a `lora` argument: None, FILE, "FILE:0.8", (FILE, 0.8), {FILE: 0.8}, or several of these.

    FILE is a .safetensors file, or a folder with `pytorch_lora_weights.safetensors` or only one .safetensors file.
    Checks the header of each file. Raises `SourceError`.
    """
    if loras is None:
        return ()
    if isinstance(loras, (set, frozenset)):
        raise SourceError(f"cannot use a set of LoRAs, which has no order: got {loras!r:.80}. Pass a list.")
    if isinstance(loras, (str, bytes, Path, Mapping)) or _is_pair(loras) or not isinstance(loras, Iterable):
        return tuple(_parse_item(loras))
    return tuple(lora for item in loras for lora in _parse_item(item))


def _is_pair(item: Any) -> bool:
    """Tell whether it is (FILE, WEIGHT). A tuple of two files is two LoRAs."""
    not_a_weight = (str, bytes, Path, tuple, Mapping, type(None))
    return isinstance(item, tuple) and len(item) == 2 and not isinstance(item[1], not_a_weight)


def _parse_item(item: Any) -> Iterator[Lora]:
    """Yield the LoRAs of a mapping, or the LoRA of another item."""
    pairs = item.items() if isinstance(item, Mapping) else [item if _is_pair(item) else (item, _UNSET)]
    for name, weight in pairs:
        yield _parse_lora(name, weight, item)


def _parse_lora(name: Any, number: Any, item: Any) -> Lora:
    """Return one LoRA. Checks that its file exists and is complete, by its header."""
    if not isinstance(name, (str, Path)):
        raise SourceError(f"invalid LoRA {item!r:.80}: expected FILE, 'FILE:0.8', (FILE, 0.8) or {{FILE: 0.8}}.")
    path, exists = _find(name)
    if number is _UNSET and not exists and ":" in str(name):
        stem, _, number = str(name).rpartition(":")
        path, exists = _find(stem)
    weight = 1.0 if number is _UNSET else _number(number)
    if not -10 <= weight <= 10:
        message = f"{path}: invalid LoRA weight {number!r:.80}; expected a number from -10 to 10."
        raise SourceError(message, path=path, field="weight")
    if exists and path.is_dir():
        path = _lora_in(path)
    if not exists or not path.is_file():
        message = f"there is no LoRA file {path}; expected a .safetensors file: FILE or FILE:0.8."
        raise SourceError(message, path=path)
    if path.suffix != ".safetensors":
        message = f"cannot read {path}: expected a .safetensors file. Other formats (pickle) can run code."
        raise SourceError(message, path=path)
    TensorFile(path)  # raises for a damaged file
    return Lora(path=path, weight=weight)


def _find(name: Named) -> tuple[Path, bool]:
    """Return the path, and whether it is an existing file or folder. An empty name is not the current folder."""
    try:
        path = Path(name).expanduser()
        return path, name != "" and path.exists()
    except (OSError, RuntimeError, ValueError) as failed:  # no permission, a name that is too long, an unknown home
        reason = failed.strerror if isinstance(failed, OSError) else first_line(failed)
        raise SourceError(f"cannot read the LoRA file {name!s:.80}: {reason}.", path=name) from None


def _lora_in(folder: Path) -> Path:
    """Return the LoRA file in `folder`: the one that diffusers writes, or the only one."""
    try:
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as failed:
        raise SourceError(f"cannot read the LoRA folder {folder}: {failed.strerror}.", path=folder) from None
    files = [name for name in names if name.endswith(".safetensors")]
    if _OF_DIFFUSERS in files:
        return folder / _OF_DIFFUSERS
    if _OF_PEFT in names:
        raise SourceError(
            f"{folder} is a peft adapter: Calotype does not read {_OF_PEFT}. Save the adapter with diffusers' "
            "save_lora_weights and pass the file that it writes.",
            path=folder,
        )
    if len(files) == 1:
        return folder / files[0]
    more = [f"{len(names) - _MAX_LISTED} more"] if len(names) > _MAX_LISTED else []
    listed = ", ".join([*map(repr, names[:_MAX_LISTED]), *more]) or "nothing"
    expected = f"expected {_OF_DIFFUSERS} or one .safetensors file, got {listed}"
    raise SourceError(f"cannot choose a LoRA in {folder}: {expected}. Pass a file.", path=folder)


def _number(value: Any) -> float:
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def weight_deltas_of(loras: Sequence[Lora], networks: Mapping[str, Shapes]) -> dict[str, WeightDeltas]:
    """Return the weight updates of each network that the LoRAs change.

    A LoRA of weight 0 changes nothing, but it must match as well.

    Args:
        loras: the LoRAs, in the order in which they are added.
        networks: the shapes of each network's layers, by name.

    Raises:
        SourceError: a tensor does not match. The message names it.
    """
    matches = [matching_keys(lora, networks) for lora in loras]  # headers only: checks all files before reading one
    digests = [lora.digest for lora in loras]
    terms: dict[str, dict[str, list[Term]]] = {name: {} for name in networks}
    keys_of: dict[str, list[Any]] = {name: [] for name in networks}
    for lora, keys, digest in zip(loras, matches, digests, strict=True):
        added = _terms(lora, keys, networks)
        if not lora.weight:
            continue
        for (component, layer), term in added.items():
            terms[component].setdefault(f"{layer}.weight", []).append(term)
        for component in {component for component, _ in added}:
            keys_of[component].append([digest, lora.weight])
    return {
        name: WeightDeltas(
            patches={parameter: WeightDelta(terms=tuple(each)) for parameter, each in changed.items()},
            key=digest_of([READER, keys_of[name]]),
        )
        for name, changed in terms.items()
        if changed
    }


def components_in(lora: Lora) -> set[str]:
    """Return the networks for which the file has tensors, by the tensors' names."""
    return {target.component for target in map(tensor_target, TensorFile(lora.path)) if target is not None}


def matching_keys(lora: Lora, networks: Mapping[str, Shapes]) -> Parts:
    """Return the file's keys by layer and part. Reads only the header. Raises `SourceError` if a key does not match."""
    file = TensorFile(lora.path)
    names = {component: layers_by_name(shapes, component) for component, shapes in networks.items()}
    parts: dict[tuple[str, str], dict[str, str]] = {}
    for key in file:
        target = _target(lora, key)
        layer = names.get(target.component, {}).get(target.layer)
        if layer is None:
            raise _misfit(lora, key, file, networks)
        other = parts.setdefault((target.component, layer), {}).setdefault(target.part, key)
        if other != key:
            message = f"cannot use {lora.path}: {other} and {key} have the same target. Download it again."
            raise SourceError(message, path=lora.path, field=key)
    if not parts:
        raise SourceError(f"{lora.path} does not fit the model: it holds no tensors.", path=lora.path)
    for (component, layer), keys in parts.items():
        if not is_complete(keys):
            key = min(keys.values())
            message = f"{lora.path} is incomplete: {key} has no partner. Download it again."
            raise SourceError(message, path=lora.path, field=key)
        shape = networks[component][layer]
        if (wrong := mismatch(keys, file, shape)) is not None:
            raise _misfit(lora, wrong, file, networks, shape)
    return parts


def _terms(lora: Lora, parts: Parts, networks: Mapping[str, Shapes]) -> dict[tuple[str, str], Term]:
    """Return the update of each (component, layer)."""
    file = TensorFile(lora.path)
    settings = settings_of(file)
    terms = {}
    for (component, layer), keys in parts.items():
        scale_of = partial(settings.scale, component, layer)
        with np.errstate(all="ignore"):  # `bound` finds numbers that are not finite
            terms[component, layer] = term = term_of(keys, file, networks[component][layer], lora.weight, scale_of)
            finite = term.bound() <= _MAX_FLOAT
        if not finite:
            message = f"{lora.path} holds numbers that are not finite, for {component}.{layer}. Download it again."
            raise SourceError(message, path=lora.path, field=f"{component}.{layer}")
    return terms


def _target(lora: Lora, key: str) -> TensorTarget:
    target, other = tensor_target(key), kind_of(key)
    if other is not None:
        message = f"{lora.path} is {other} ({key}), which is not supported. Use a LoRA, LoHa, LoKr, DoRA, IA3 or OFT."
        raise SourceError(message, path=lora.path, field=key)
    if target is None:
        expected = f"{key} is not a name of a LoRA format; expected the format of diffusers, peft, kohya or LyCORIS"
        raise SourceError(f"{lora.path} does not fit the model: {expected}.", path=lora.path, field=key)
    return target


def _misfit(
    lora: Lora, key: str, file: TensorFile, networks: Mapping[str, Shapes], shape: tuple[int, ...] | None = None
) -> SourceError:
    """Return the error for a mismatch, with the model family that the file seems to be for."""
    reason = f"the model has no layer for {key}"
    if shape is not None:
        reason = f"{key} has the shape {list(file.shape(key))}, its weight {list(shape)}"
    width = _text_width({t.layer: file.shape(k) for k in file if (t := tensor_target(k)) and t.part == "down"})
    differs = width in _WIDTHS and width != _text_width(networks.get("unet", {}))
    family = f"; it looks like a LoRA for {_WIDTHS[width]}" if width is not None and differs else ""
    message = f"{lora.path} does not fit the model: {reason}{family}. Use a LoRA of the same model family."
    return SourceError(message, path=lora.path, field=key)


def _text_width(shapes: Shapes) -> int | None:
    """Return the width of the text states in the cross-attention of a U-Net, or None."""
    names = (name for name in shapes if name.endswith(("attn2.to_k", "attn2_to_k")) and "motion_modules" not in name)
    return next((shapes[name][1] for name in names), None)
