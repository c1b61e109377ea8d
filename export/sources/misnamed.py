"""Describe paths that are not a model, and the argument that takes them, for error messages.

Reads file names and configs, and headers of weight files.
"""

from __future__ import annotations

from pathlib import Path

from calotype.files.json_file import read_json

from .single_file import describe_contents
from .weight_files import EXPORTED, EXPORTS, check_safetensors

# diffusers' class -> the argument that takes its folder
_ARGUMENTS = {"ControlNetModel": "controlnet", "AutoencoderKL": "vae", "AutoencoderTiny": "vae"}
_ARGUMENTS |= {"T2IAdapter": "t2i_adapter", "ControlNetUnionModel": "controlnet"}
_ARGUMENTS["MotionAdapter"] = "motion_adapter"
_MODEL = (
    "a model is a folder in diffusers' layout, which has a model_index.json and the folders unet, vae, text_encoder, "
    "tokenizer and scheduler"
)


def kind_of_file(path: Path) -> str:
    """Return the kind of a file whose weights are not read here, with an article."""
    return EXPORTS.get(path.suffix.lower(), "a file")


def describe_other_folder(folder: Path, named_as: str = "model") -> str | None:
    """Describe a folder that is not a `named_as`, and the argument that takes it; None if it is unknown.

    Raises `SourceError` if its config or its only weight file cannot be read.
    """
    if (folder / "adapter_config.json").is_file():
        return f"{folder} holds a peft LoRA. Pass its .safetensors file as lora= (--lora), together with a model."
    if (folder / "config.json").is_file():
        config = read_json(folder / "config.json", "the folder's config")  # of diffusers or transformers
        value = config.get("_class_name") or config.get("architectures") or config.get("model_type")
        if kind := str(value[0] if isinstance(value, list) else value or "")[:80]:
            parent = folder.absolute().parent
            if argument := _ARGUMENTS.get(kind):
                remedy = f"Pass it as {argument}= (--{argument.replace('_', '-')}), together with a model"
            elif (parent / "model_index.json").is_file():
                remedy = f"Pass the model's folder: {parent}"
            else:
                remedy = f"No argument takes it. Pass the folder of its model: {_MODEL}"
            return f"{folder} holds {kind}, not a full model. {remedy}."
    if export := describe_export(folder):
        return export
    single = sorted(folder.glob("*.safetensors"))
    if len(single) == 1 and "(pass it as " in (contents := describe_contents(check_safetensors(single[0]), named_as)):
        return f"{folder} has no model_index.json and no config.json. Its {single[0].name} holds {contents}."
    return None


def describe_export(folder: Path) -> str | None:
    """Describe another program's export in a folder or its subfolders; None if it has none."""
    for file in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        if file.suffix in EXPORTS and file.is_file():
            return f"{folder} holds {EXPORTS[file.suffix]} ({file.name}). {EXPORTED}."
    return None
