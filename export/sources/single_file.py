"""Checkpoints in the original layout: a model in one `.safetensors`, as CompVis and Stability AI published them.

The names and shapes of the tensors identify the model. The file is converted once to a folder in diffusers' layout, an
entry of the store, with the configs and the vocabulary of this package: nothing is fetched. `convert` renames the
tensors in a child process, so this module does not import torch. For single networks see `single_file_components`.
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

from ..steps.stored_step import StoredStep
from ..steps.versions import versions
from .configs import MODELS, REFINER
from .gguf_file import header_of
from .weight_files import Header

CONVERTER = 2  # increased when the conversion produces other files
CONTROL_LORA = "lora_controlnet"  # a tensor that only such files have
UNET, VAE = "model.diffusion_model.", "first_stage_model."
_FIRST = f"{UNET}input_blocks.0.0.weight"  # its second dimension: the U-Net's input channels
_SECOND_TEXT = f"{UNET}label_emb.0.0.weight"  # SDXL's layer for the pooled text
_LORA, _EMBEDDING = ("a LoRA", "lora"), ("a textual inversion", "textual_inversion")
_CONTROLNET = ("a ControlNet", "controlnet")
# First part of a tensor's name -> the kind of file, and the argument that takes it.
_MARKS = {
    CONTROL_LORA: ("a Control-LoRA", "controlnet"),
    "lora": _LORA,
    "emb_params": _EMBEDDING,
    "clip_l": _EMBEDDING,
    "joint_blocks": ("a diffusion transformer", None),
    "double_blocks": ("a diffusion transformer", None),
    "difference": ("a ControlNet's difference to a model", None),
    "lllite": ("a ControlLLLite", None),
    "task_embedding": ("a multi-task ControlNet", None),
    "control_model": _CONTROLNET,
    "input_hint_block": _CONTROLNET,
    "controlnet_cond_embedding": _CONTROLNET,
    "adapter": ("a T2I-Adapter", "t2i_adapter"),
    "image_proj": ("an IP-Adapter", "ip_adapter"),
    "quantize": ("an autoencoder of a codebook", None),
}
_NETWORKS = {"time_embedding": "only a U-Net", "text_model": "only a text encoder", "embeddings": "only a text encoder"}
_PARTS = {"a U-Net": (UNET,), "an autoencoder": (VAE,), "a text encoder": ("cond_stage_model.", "conditioner.")}


@dataclass(frozen=True, kw_only=True)
class OriginalCheckpoint:
    """The model of a checkpoint in the original layout."""

    name: str  # the common name of the model
    texts: Mapping[str, str]  # text encoder -> prefix of its tensors' names
    described: Mapping[str, Any]  # the parts, as in `configs.MODELS`


OPENAI, OPENCLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
_XL = ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.")
_XL_RENAMED = ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.transformer.")  # in GGUF
_TOKENS = f"{OPENAI}text_model.embeddings.token_embedding.weight"
_OPEN_WIDTH = MODELS["sd21"]["text_encoder"][1]["hidden_size"]  # the second dimension of these in OpenCLIP's encoder
_SINGLE = "conditioner.embedders.0.model."  # of the refiner, and of Stable Diffusion 2 in Stability AI's later code


def identify_checkpoint(path: Path, header: Header) -> OriginalCheckpoint:
    """Identify the checkpoint by its tensors. Raises `SourceError` for other files, with their contents."""
    names = header.shapes
    starts = [p for p in (OPENAI, OPENCLIP, *_XL, _XL_RENAMED[1], _SINGLE) if any(name.startswith(p) for name in names)]
    if _FIRST not in names or not starts or not any(name.startswith(VAE) for name in names):
        raise SourceError(_unknown(path, header), path=path)
    pooled = _SECOND_TEXT in names
    open_clip = starts == [OPENAI] and names.get(_TOKENS, (0, 0))[1:2] == (_OPEN_WIDTH,)
    if starts == [OPENAI] and not pooled and not open_clip:
        name, encoders, described = "Stable Diffusion 1.x", ["text_encoder"], MODELS["sd15"]
    elif (open_clip or starts in ([OPENCLIP], [_SINGLE])) and not pooled:
        name, encoders, described = "Stable Diffusion 2.x", ["text_encoder"], MODELS["sd21"]
    elif starts in (list(_XL), list(_XL_RENAMED)) and pooled:
        name, encoders, described = "Stable Diffusion XL", ["text_encoder", "text_encoder_2"], MODELS["sdxl"]
    elif starts == [_SINGLE] and pooled:
        name, encoders, described = "the refiner of Stable Diffusion XL", ["text_encoder_2"], REFINER
    else:
        raise SourceError(_unknown(path, header), path=path)
    channels = names[_FIRST][1]
    with_image = {9: ("inpainting", "Inpaint")} if "text_encoder" in encoders else {}
    if len(encoders) == 1 and with_image:
        with_image |= {8: ("editing", "InstructPix2Pix"), 5: ("with a depth map", "Depth2Img")}
    if channels not in (4, *with_image):
        raise SourceError(
            f"{path} is {name} with {channels} input channels; expected 4, 5 (depth), 8 (editing) or 9 (inpainting).",
            path=path,
        )
    class_name, config = described["unet"]
    parts = {**described, "unet": (class_name, {**config, "in_channels": channels})}
    if channels in with_image:
        task, prefix = with_image[channels]
        name, parts["pipeline"] = f"{name}, {task}", described["pipeline"].replace("Pipeline", f"{prefix}Pipeline")
    return OriginalCheckpoint(name=name, texts=dict(zip(encoders, starts, strict=True)), described=parts)


def open_checkpoint(path: Path) -> Path:
    """Return the checkpoint as a folder in diffusers' layout, converted at its first use. Raises `SourceError`."""
    header = header_of(path)
    checkpoint = identify_checkpoint(path, header)
    starts = (UNET, VAE, *checkpoint.texts.values())
    check_types(path, {name: kind for name, kind in header.types.items() if name.startswith(starts)})
    title = f"{checkpoint.name} in the original layout"
    return convert_once(path, title, "convert_into", **vars(checkpoint), metadata=header.metadata)


def convert_once(path: Path, title: str, function: str, component: str = "model", /, **arguments: Any) -> Path:
    """Convert a file to a folder of the store, at its first use, with a message. Return the folder.

    Args:
        path: the file.
        title: what the file is, for messages.
        function: the name of a function of `convert`, or "MODULE:FUNCTION"; it may return a "message".
        component: the component for the entry's label.
        arguments: the function's arguments. The folder depends only on these and on the file.
    """
    step = StoredStep(
        depends_on={"checkpoint": file_digest(path), **arguments, "tools": versions(), "converter": CONVERTER},
        label={"component": component, "kind": "rewritten checkpoint", "model": path.name},
    )
    fresh = not step.is_stored
    if fresh:
        print(printable(f"calotype: {path.name} is {title}; converting it (once)"), file=sys.stderr)
    function = function if ":" in function else f"calotype.export.sources.convert:{function}"
    stored = step.run_in_child(f"converting {path.name}", function, file=str(path), **arguments)
    if fresh and "message" in stored.notes:
        print(printable(f"calotype: {stored.notes['message']}"), file=sys.stderr)
    return stored.folder


def describe_contents(header: Header, named_as: str = "model") -> str:
    """Describe a file by the names of its tensors, for error messages.

    `named_as` is the argument that the user passed it as. If another argument takes such files, the text names it.
    """
    firsts = list(dict.fromkeys(name.split(".")[0] for name in header.shapes))
    kind, keyword = _kind(header, firsts)
    if keyword:
        kind += " of another kind" if keyword == named_as else f" (pass it as {keyword}=)"
    tensors = f"{len(header.shapes)} tensors, under {', '.join(firsts[:4]) or 'no names'}"
    return f"{kind} ({tensors})" if kind else tensors


def _kind(header: Header, firsts: Sequence[str]) -> tuple[str, str | None]:
    """Return the kind of the file ("" if unknown), and the argument that takes such files."""
    bare = [*firsts, *(name.removeprefix(UNET) for name in header.shapes)]
    for mark, kind in _MARKS.items():
        if any(name.startswith(mark) for name in bare):
            return kind
    if any("lora_" in name or ".lora." in name for name in header.shapes):  # diffusers and peft
        return _LORA
    if network := next((kind for mark, kind in _NETWORKS.items() if mark in firsts), None):
        return network, None
    for name, shape in header.shapes.items():
        if len(header.shapes) == 1 and "." not in name and len(shape) == 2:  # the word names the vectors
            return _EMBEDDING
    parts = [part for part, start in _PARTS.items() if any(name.startswith(start) for name in header.shapes)]
    if parts:
        return ("a full model", "model") if len(parts) == len(_PARTS) else (f"only {' and '.join(parts)}", None)
    halves = {"encoder", "decoder"} & set(firsts)
    return ("an autoencoder", "vae") if len(halves) == 2 else ("half an autoencoder" if halves else "", None)


def _unknown(path: Path, header: Header) -> str:
    return (
        f"{path} holds {describe_contents(header)}; expected all of Stable Diffusion 1.x, 2.x, XL or XL's refiner in "
        "the original layout: U-Net, text encoders and autoencoder."
    )
