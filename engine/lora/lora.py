"""LoRA files: what a user names, read and given to the layers that they were trained for.

Every tensor of a file must find its layer, and fit. Knows the sums' parts (`patches`) and the layouts' names
(`formats`); which networks there are, and how their weights are changed, is said by the caller.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..errors import SourceError, first_line
from ..files.digest import digest_of, file_digest
from ..weights.delta import LowRankTerm, WeightDelta, WeightDeltas
from ..weights.safetensors import TensorFile
from .folder import lora_in
from .formats import TensorTarget, kind_of, layers_by_name, tensor_target
from .peft_metadata import settings_of

READER = 2  # raised when the same file would change weights in another way
_UNSAID = object()
_LARGEST = float(np.finfo(np.float32).max)
_RANK = 1024  # the largest rank that is read, and that of no layer is larger than its sides
_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}  # of text

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
Parts: TypeAlias = Mapping[tuple[str, str], Mapping[str, str]]  # (component, layer) -> part -> key
Named: TypeAlias = str | Path
Weighed: TypeAlias = Named | tuple[Named, float] | Mapping[Named, float]
LoraLike: TypeAlias = Weighed | Iterable[Weighed] | None


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A file, and how strongly it counts."""

    path: Path
    weight: float

    @cached_property
    def digest(self) -> str:
        """The file's SHA-256, computed when first needed: after the file was seen to fit. Raises `SourceError`."""
        return file_digest(self.path)

    def __str__(self) -> str:
        return f"{self.path}:{self.weight!r}"


def parse_loras(given: LoraLike) -> tuple[Lora, ...]:
    """Read what a user names: None, FILE, "FILE:0.8", (FILE, 0.8), {FILE: 0.8}, or several of these.

    FILE may be a folder that holds `pytorch_lora_weights.safetensors`, or a single .safetensors file. Of each file the
    header is checked. Raises `SourceError`.
    """
    if given is None:
        return ()
    if isinstance(given, (set, frozenset)):
        raise SourceError(f"LoRAs are added in an order, which a set does not have; give a list. Got {given!r:.80}.")
    if isinstance(given, (str, bytes, Path, Mapping)) or _is_pair(given) or not isinstance(given, Iterable):
        return tuple(_each(given))
    return tuple(lora for some in given for lora in _each(some))


def _is_pair(given: Any) -> bool:
    """Is it (FILE, WEIGHT)? A tuple of two files is two LoRAs."""
    several = (str, bytes, Path, tuple, Mapping, type(None))
    return isinstance(given, tuple) and len(given) == 2 and not isinstance(given[1], several)


def _each(given: Any) -> Iterator[Lora]:
    """The LoRAs of a mapping, or the one that is named otherwise."""
    if isinstance(given, Mapping):
        for name, number in given.items():
            yield _lora_from(name, number, given)
    elif _is_pair(given):
        name, number = given
        yield _lora_from(name, number, given)
    else:
        yield _lora_from(given, _UNSAID, given)


def _lora_from(name: Any, number: Any, given: Any) -> Lora:
    """One of them, after a look at its header: the file exists and is complete."""
    if not isinstance(name, (str, Path)):
        raise SourceError(f"a LoRA is named as FILE, 'FILE:0.8', (FILE, 0.8) or {{FILE: 0.8}}; got {given!r:.80}.")
    path, there = _looked_at(name)
    if number is _UNSAID and not there and ":" in str(name):
        stem, _, number = str(name).rpartition(":")
        path, there = _looked_at(stem)
    weight = 1.0 if number is _UNSAID else _number(number)
    if not -10 <= weight <= 10:
        raise SourceError(f"{path}: a LoRA's weight is a number from -10 to 10, as in FILE:0.8; got {number!r:.80}.")
    if there and path.is_dir():
        path = lora_in(path)
    if not there or not path.is_file():
        raise SourceError(f"there is no LoRA file {path}; name a .safetensors file, as in FILE or FILE:0.8.")
    if path.suffix != ".safetensors":
        raise SourceError(f"{path} is no .safetensors file; a LoRA is read from nothing else, since pickles run code.")
    TensorFile(path)  # raises for a file that is damaged
    return Lora(path=path, weight=weight)


def _looked_at(name: Named) -> tuple[Path, bool]:
    """The path, and whether there is a file or a folder. An empty name is not the current folder."""
    try:
        path = Path(name).expanduser()
        return path, name != "" and path.exists()
    except (OSError, RuntimeError, ValueError) as failed:  # no permission, too long a name, no such home
        told = failed.strerror if isinstance(failed, OSError) else first_line(failed)
        raise SourceError(f"the LoRA file {name!s:.80} cannot be looked at ({told}).") from None


def _number(given: Any) -> float:
    try:
        return math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def weight_deltas_of(loras: Sequence[Lora], networks: Mapping[str, Shapes]) -> dict[str, WeightDeltas]:
    """What the LoRAs add to each network, of all that are named: the shapes of its layers' weights, layer by layer.

    A LoRA of weight 0 must fit as well, and adds nothing. Raises `SourceError` naming a tensor without a place.
    """
    fitting = [keys_that_fit(lora, networks) for lora in loras]  # of all, by their headers, before one is read whole
    digests = [lora.digest for lora in loras]
    terms: dict[str, dict[str, list[LowRankTerm]]] = {name: {} for name in networks}
    weighed: dict[str, list[Any]] = {name: [] for name in networks}
    for lora, keys, digest in zip(loras, fitting, digests, strict=True):
        read = _terms(lora, keys)
        if not lora.weight:
            continue
        for (component, layer), term in read.items():
            terms[component].setdefault(f"{layer}.weight", []).append(term)
        for component in {component for component, _ in read}:
            weighed[component].append([digest, lora.weight])
    return {
        name: WeightDeltas(
            patches={parameter: WeightDelta(terms=tuple(each)) for parameter, each in found.items()},
            key=digest_of([READER, weighed[name]]),
        )
        for name, found in terms.items()
        if found
    }


def components_in(lora: Lora) -> set[str]:
    """The networks that the file has tensors for, by its own word."""
    return {place.component for place in map(tensor_target, TensorFile(lora.path)) if place is not None}


def keys_that_fit(lora: Lora, networks: Mapping[str, Shapes]) -> Parts:
    """The file's keys by the layers that they are for, by its header alone. Raises `SourceError` where one misfits."""
    file = TensorFile(lora.path)
    names = {component: layers_by_name(shapes, component) for component, shapes in networks.items()}
    parts: dict[tuple[str, str], dict[str, str]] = {}
    for key in file:
        place = _placed(lora, key)
        layer = names.get(place.component, {}).get(place.layer)
        if layer is None:
            raise SourceError(_misfit(lora, key, file, networks))
        other = parts.setdefault((place.component, layer), {}).setdefault(place.part, key)
        if other != key:
            raise SourceError(f"{lora.path} is no LoRA: {other} and {key} are for one and the same; fetch it again.")
    if not parts:
        raise SourceError(f"{lora.path} does not fit the model: it is empty.")
    for (component, layer), keys in parts.items():
        lone = {"down", "up"} - set(keys)
        if lone:
            raise SourceError(f"{lora.path} is no whole LoRA: {min(keys.values())} has no partner; fetch it again.")
        shape = networks[component][layer]
        if not _fits(keys, file, shape):
            raise SourceError(_misfit(lora, keys["down"], file, networks, shape))
    return parts


def _terms(lora: Lora, parts: Parts) -> dict[tuple[str, str], LowRankTerm]:
    """(component, layer) -> what this file adds to it."""
    file = TensorFile(lora.path)
    settings = settings_of(file)
    found = {}
    for (component, layer), keys in parts.items():
        found[component, layer] = _term(keys, file, lora.weight, settings.alpha(component, layer))
        if not _finite(found[component, layer]):
            raise SourceError(
                f"{lora.path} holds numbers that are not finite, for {component}.{layer}; fetch it again."
            )
    return found


def _placed(lora: Lora, key: str) -> TensorTarget:
    place, other = tensor_target(key), kind_of(key)
    if other is not None:
        raise SourceError(f"{lora.path} is {other} ({key}), which this version cannot add; take an ordinary LoRA.")
    if place is None:
        raise SourceError(
            f"{lora.path} does not fit the model: {key} is a name of no LoRA layout; read are those of diffusers, "
            "peft and kohya."
        )
    return place


def _fits(keys: Mapping[str, str], file: TensorFile, shape: tuple[int, ...]) -> bool:
    """Do the matrices multiply to the weight's shape?"""
    up, down = file.shape(keys["up"]), file.shape(keys["down"])
    if len(up) < 2 or len(down) < 2 or math.prod(up[2:]) != 1 or not down[0]:
        return False
    if max(down[0], up[1]) > max(_RANK, *shape):
        return False
    if "mid" not in keys:
        inner = len(down) == 2 or len(shape) == 2 or down[2:] == shape[2:]
        return inner and up[:2] == (shape[0], down[0]) and math.prod(down[1:]) == math.prod(shape[1:])
    middle = file.shape(keys["mid"])
    return (
        len(shape) == 4
        and math.prod(down[2:]) == 1
        and middle == (up[1], down[0], *shape[2:])
        and (up[0], down[1]) == shape[:2]
    )


def _term(keys: Mapping[str, str], file: TensorFile, weight: float, told: float | None) -> LowRankTerm:
    """The rank divides alpha, which is the rank where nobody says it: diffusers' and kohya's convention."""
    up, down = file[keys["up"]], file[keys["down"]]
    rank = len(down)
    alpha = file.number(keys["alpha"]) if "alpha" in keys else rank if told is None else told
    return LowRankTerm(
        up=up.reshape(up.shape[:2]),
        down=down.reshape(rank, -1),
        middle=file[keys["mid"]] if "mid" in keys else None,
        scale=weight * alpha / rank,
    )


def _finite(term: LowRankTerm) -> bool:
    """Are its numbers finite, and is their product sure to be, in whatever order it is computed?"""
    arrays = [term.up, term.down, *([] if term.middle is None else [term.middle])]
    sums = math.prod(array.shape[0] for array in arrays[1:])  # each number of the product is a sum of so many
    largest = [float(np.abs(array).max(initial=1)) for array in arrays]  # NaN where a number is
    return math.isfinite(term.scale) and math.prod([*largest, sums, max(abs(term.scale), 1)]) <= _LARGEST


def _misfit(
    lora: Lora, key: str, file: TensorFile, networks: Mapping[str, Shapes], shape: tuple[int, ...] | None = None
) -> str:
    """What was wanted, what was got, and of which family the file seems to be."""
    if shape is None:
        told = f"there is no place for {key}"
    else:
        told = f"{key} is of shape {list(file.shape(key))}, and the weight that it is for of {list(shape)}"
    theirs = _text_width({_layer(k): file.shape(k) for k in file if (p := tensor_target(k)) and p.part == "down"})
    ours = _text_width(networks.get("unet", {}))
    family = f"; it looks like one for {_WIDTHS[theirs]}" if theirs in _WIDTHS and theirs != ours else ""
    return f"{lora.path} does not fit the model: {told}{family}. Take a LoRA of the model's own family."


def _layer(key: str) -> str:
    place = tensor_target(key)
    return "" if place is None else place.layer


def _text_width(shapes: Shapes) -> int | None:
    """How wide the text is that the U-Net attends to."""
    found = (shape[1] for name, shape in shapes.items() if name.endswith(("attn2.to_k", "attn2_to_k")))
    return next(found, None)
