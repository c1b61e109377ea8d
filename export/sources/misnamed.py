"""What lies in a folder that is not a model, and which argument takes it: the way out that an error names.

Knows names of files and what configs say of themselves; opens no weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calotype.files.json_file import read_json

from .single_file import what_is_in
from .weight_files import EXPORTED, EXPORTS, check_safetensors

_ARGUMENTS = {  # diffusers' class -> the argument that takes its folder beside a model
    "ControlNetModel": "controlnet",
    "AutoencoderKL": "vae",
    "AutoencoderTiny": "vae",
}
_WHOLE = (
    "a model is a folder in diffusers' layout, which has a model_index.json and the folders unet, vae, text_encoder, "
    "tokenizer and scheduler"
)


def kind_of_file(path: Path) -> str:
    """What a file is that holds no weights that are read here, with an article."""
    return EXPORTS.get(path.suffix.lower(), "a file")


def other_folder(folder: Path, named_as: str = "model") -> str | None:
    """What a folder holds that is not what it was named as, and which argument takes it; None where that is unknown.

    Raises `SourceError` where its config or its only file of weights cannot be read.
    """
    if (folder / "adapter_config.json").is_file():
        return f"{folder} holds a LoRA of peft; name its .safetensors file as lora= (--lora) beside a model."
    if (folder / "config.json").is_file():
        config = read_json(folder / "config.json", "it says what the folder holds")
        if kind := _class_of(config):
            return f"{folder} holds {kind}, not a whole model; {_way_out(folder, kind)}."
    if export := exported(folder):
        return export
    single = sorted(folder.glob("*.safetensors"))
    if len(single) == 1 and "(name it as " in (what := what_is_in(check_safetensors(single[0]), named_as)):
        return f"{folder} has no model_index.json and no config.json; {single[0].name} in it holds {what}."
    return None


def _class_of(config: dict[str, Any]) -> str:
    """What a config calls its network: diffusers has `_class_name`, transformers has `architectures`."""
    named = config.get("_class_name") or config.get("architectures") or config.get("model_type")
    return str(named[0] if isinstance(named, list) else named or "")[:80]


def _way_out(folder: Path, kind: str) -> str:
    if argument := _ARGUMENTS.get(kind):
        return f"name it as {argument}= (--{argument}) beside a model"
    parent = folder.absolute().parent
    if (parent / "model_index.json").is_file():
        return f"name the model's folder: {parent}"
    return f"no argument takes it alone. Name the folder of the model that it belongs to: {_WHOLE}"


def exported(folder: Path) -> str | None:
    """What another program's export is that lies in a folder or the folders in it; None where there is none."""
    for file in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        if file.suffix in EXPORTS and file.is_file():
            return f"{folder} holds {EXPORTS[file.suffix]} ({file.name}). {EXPORTED}."
    return None
