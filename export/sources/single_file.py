"""Checkpoints in the original layout: a model's weights in one `.safetensors`, as CompVis and Stability wrote them.

What such a file is, is found from the names and shapes of its tensors. It is rewritten once into a folder of diffusers'
layout, an entry of the store, with the configs and the vocabulary that we carry: nothing is fetched. Imports no torch;
what renames the tensors is `converting`. A network alone in its file is `parts`'s.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calotype.errors import SourceError
from calotype.errors.printable import printable
from calotype.files.digest import file_digest
from calotype.weights.types import check_types

from ..steps.subprocess_task import run_in_subprocess
from ..steps.versions import versions
from ..store.store import fetch, has, key_of
from .configs import MODELS, REFINER
from .weight_files import Header, check_safetensors

CONVERTER = 1  # raised when the way checkpoints are rewritten changes what comes out
UNET, VAE = "model.diffusion_model.", "first_stage_model."
_FIRST = f"{UNET}input_blocks.0.0.weight"  # its second dimension: the channels that the U-Net takes
_SECOND_TEXT = f"{UNET}label_emb.0.0.weight"  # of SDXL: where the pooled text enters
_LORA, _WORDS = ("a LoRA", "lora"), ("a textual inversion", "textual_inversion")
_CONTROLNET = ("a ControlNet", "controlnet")
# How the name of a tensor begins that only such files have -> what they are, and what they are named as when loading.
_MARKS = {
    "lora_controlnet": ("a Control-LoRA", None),
    "lora": _LORA,
    "emb_params": _WORDS,
    "clip_l": _WORDS,
    "joint_blocks": ("a diffusion transformer", None),
    "double_blocks": ("a diffusion transformer", None),
    "difference": ("a ControlNet's difference to a model", None),
    "lllite": ("a ControlLLLite", None),
    "task_embedding": ("a ControlNet for many tasks at once", None),
    "control_model": _CONTROLNET,
    "input_hint_block": _CONTROLNET,
    "controlnet_cond_embedding": _CONTROLNET,
    "adapter": ("a T2I-Adapter", None),
    "quantize": ("an autoencoder of a codebook", None),
}
_ALONE = {"time_embedding": "a U-Net alone", "text_model": "a text encoder alone", "embeddings": "a text encoder alone"}
_PARTS = {"a U-Net": (UNET,), "an autoencoder": (VAE,), "a text encoder": ("cond_stage_model.", "conditioner.")}


@dataclass(frozen=True, kw_only=True)
class Original:
    """What a checkpoint in the original layout holds.

    Attributes:
        name: as people call it.
        texts: for each text encoder, what the names of its tensors begin with.
        described: its parts as `published` has them.
    """

    name: str
    texts: Mapping[str, str]
    described: Mapping[str, Any]

    def with_channels(self, channels: int) -> Original:
        """The same with a U-Net that takes so many channels: with 9 it is an inpainting model."""
        class_name, config = self.described["unet"]
        parts = {**self.described, "unet": (class_name, {**config, "in_channels": channels})}
        if channels == 4:
            return Original(name=self.name, texts=self.texts, described=parts)
        parts["pipeline"] = self.described["pipeline"].replace("Pipeline", "InpaintPipeline")
        return Original(name=f"{self.name}, inpainting", texts=self.texts, described=parts)


OPENAI, OPENCLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
_XL = ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.")
_SINGLE = "conditioner.embedders.0.model."  # of the refiner; and of Stable Diffusion 2 as Stability's later code has it


def original_of(path: Path, header: Header) -> Original:
    """What the checkpoint is, by its tensors. Raises `SourceError` that says what was found where it is another."""
    names = header.shapes
    starts = [p for p in (OPENAI, OPENCLIP, *_XL, _SINGLE) if any(name.startswith(p) for name in names)]
    if _FIRST not in names or not starts or not any(name.startswith(VAE) for name in names):
        raise SourceError(_unknown(path, header))
    pooled = _SECOND_TEXT in names
    if starts == [OPENAI] and not pooled:
        found = Original(name="Stable Diffusion 1.x", texts={"text_encoder": OPENAI}, described=MODELS["sd15"])
    elif starts in ([OPENCLIP], [_SINGLE]) and not pooled:
        found = Original(name="Stable Diffusion 2.x", texts={"text_encoder": starts[0]}, described=MODELS["sd21"])
    elif starts == list(_XL) and pooled:
        texts = dict(zip(("text_encoder", "text_encoder_2"), _XL, strict=True))
        found = Original(name="Stable Diffusion XL", texts=texts, described=MODELS["sdxl"])
    elif starts == [_SINGLE] and pooled:
        texts = {"text_encoder_2": _SINGLE}
        found = Original(name="the refiner of Stable Diffusion XL", texts=texts, described=REFINER)
    else:
        raise SourceError(_unknown(path, header))
    channels = names[_FIRST][1]
    if channels not in (4, 9) or (channels == 9 and "text_encoder" not in found.texts):
        raise SourceError(
            f"{path} is {found.name} with a U-Net of {channels} channels; read are those of 4, and of 9 for inpainting."
        )
    return found.with_channels(channels)


def opened(path: Path) -> Path:
    """The checkpoint as a folder in diffusers' layout, made at its first use. Raises `SourceError`."""
    header = check_safetensors(path)
    found = original_of(path, header)
    starts = (UNET, VAE, *found.texts.values())
    check_types(path, {name: kind for name, kind in header.types.items() if name.startswith(starts)})
    folder, fresh = rewritten(
        path,
        f"{found.name} in the original layout",
        "convert_into",
        name=found.name,
        texts=found.texts,
        described=found.described,
        metadata=header.metadata,
    )
    if fresh:
        print(printable(f"calotype: it predicts {fresh['predicts']}: {fresh['because']}"), file=sys.stderr)
    return folder


def rewritten(
    path: Path, what: str, function: str, component: str = "model", /, **arguments: Any
) -> tuple[Path, Mapping[str, Any]]:
    """A file as a folder of the store, and what `converting`'s `function` told of it if it was made just now.

    The arguments are the function's; with the file, they are all that the folder depends on. Raises `SourceError`.
    """
    key = key_of({"checkpoint": file_digest(path), **arguments, "tools": versions(), "converter": CONVERTER})
    fresh = not has(key)
    if fresh:
        print(printable(f"calotype: {path.name} is {what}; rewriting it (once)"), file=sys.stderr)

    def make(folder: Path) -> Mapping[str, Any]:
        done = run_in_subprocess(
            f"rewriting {path.name}",
            f"calotype.export.sources.convert:{function}",
            out=str(folder),
            file=str(path),
            **arguments,
        )
        return {**done.value, "peak_bytes": done.peak_bytes}

    label = {"component": component, "kind": "rewritten checkpoint", "model": path.name}
    folder, notes = fetch(key, make, label=label)
    return folder, notes if fresh else {}


def what_is_in(header: Header, named_as: str = "model") -> str:
    """What a file holds, as far as the names of its tensors tell it, and how many there are.

    `named_as` is what it was given as: a file of something else has the name under which it would be read.
    """
    firsts = list(dict.fromkeys(name.split(".")[0] for name in header.shapes))
    what, keyword = _kind(header, firsts)
    if keyword:
        what += " of another kind" if keyword == named_as else f" (name it as {keyword}=)"
    found = f"{len(header.shapes)} tensors, under {', '.join(firsts[:4]) or 'no names'}"
    return f"{what} ({found})" if what else found


def _kind(header: Header, firsts: Sequence[str]) -> tuple[str, str | None]:
    """What it is, nothing where that is not known; and the argument under which such a file is named."""
    bare = [*firsts, *(name.removeprefix(UNET) for name in header.shapes)]
    for mark, kind in _MARKS.items():
        if any(name.startswith(mark) for name in bare):
            return kind
    if any("lora_" in name or ".lora." in name for name in header.shapes):  # diffusers' and peft's, by their ends
        return _LORA
    if alone := next((what for mark, what in _ALONE.items() if mark in firsts), None):
        return alone, None
    for name, shape in header.shapes.items():
        if len(header.shapes) == 1 and "." not in name and len(shape) == 2:  # vectors under the word
            return _WORDS
    parts = [what for what, start in _PARTS.items() if any(name.startswith(start) for name in header.shapes)]
    if parts:
        return ("a whole model", "model") if len(parts) == len(_PARTS) else (f"{' and '.join(parts)} alone", None)
    coded = {"encoder", "decoder"} & set(firsts)
    return ("an autoencoder", "vae") if len(coded) == 2 else ("half an autoencoder" if coded else "", None)


def _unknown(path: Path, header: Header) -> str:
    return (
        f"{path} holds {what_is_in(header)}; a checkpoint that can be read holds all of Stable Diffusion 1.x, 2.x, XL "
        "or XL's refiner in the original layout: U-Net, text encoders and autoencoder."
    )
