"""Check weight files before any library opens them: complete safetensors, no pickles. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from calotype.errors import SourceError
from calotype.files.json_file import read_json
from calotype.weights.folder import shard_names
from calotype.weights.safetensors import TensorFile

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
EXPORTS = {  # suffix of other programs' exports, which are not read here -> kind of file
    ".onnx": "an ONNX export, as Optimum writes it",
    ".xml": "an OpenVINO export",
    ".gguf": "quantized weights in GGUF",
    ".engine": "a TensorRT engine",
}
EXPORTED = "Calotype exports models itself: pass the diffusers folder or the .safetensors checkpoint of the model"
_PICKLED = "a pickle, which can run any code when it is opened, so it is not read. If you trust it, convert it"


@dataclass(frozen=True, kw_only=True)
class Header:
    """The header of a safetensors file."""

    shapes: Mapping[str, Sequence[int]]
    types: Mapping[str, str]  # the format's names: F16, BF16, I8, ...
    metadata: Mapping[str, str]


def weight_files(folder: Path, stem: str) -> list[Path]:
    """Return the complete safetensors files of one component: a single file, or the shards of an index.

    The fp16 variant is used only if the folder has no other. Raises `SourceError` for missing or damaged files.
    """
    for variant in ("", ".fp16"):
        single, index = folder / f"{stem}{variant}.safetensors", folder / f"{stem}.safetensors.index{variant}.json"
        if single.is_file() or index.is_file():
            names = [single.name] if single.is_file() else shard_names(folder, read_json(index, "the list of shards"))
            files = [folder / name for name in names]
            for file in files:
                check_safetensors(file)
            return files
    for path in sorted(folder.glob("*")):
        if path.suffix in PICKLES:
            remedy = "load the model with diffusers and save it with save_pretrained(..., safe_serialization=True)"
            raise SourceError(f"{path} is {_PICKLED}: {remedy}.", path=path)
        if path.suffix in EXPORTS:
            raise SourceError(f"{path} is {EXPORTS[path.suffix]}. {EXPORTED}.", path=path)
    raise SourceError(f"{folder / stem}.safetensors is missing; only weights in safetensors are read.", path=folder)


def pickles_in(folder: Path) -> list[str]:
    """Return the names of the pickles in a folder."""
    return [path.name for path in sorted(folder.glob("*")) if path.suffix in PICKLES]


def refusal_of_pickle(path: Path, class_name: str = "StableDiffusionPipeline") -> str:
    """Return the error message for a pickle, with the call of diffusers' class that converts it."""
    line = f"{class_name}.from_single_file({path.name!r}).save_pretrained({path.stem!r})"
    return f"{path} is {_PICKLED}: diffusers' {line} writes a folder of safetensors. Pass that folder."


def check_safetensors(path: Path) -> Header:
    """Read the file's header. Raises `SourceError` unless the file has the length that its header declares."""
    file = TensorFile(path)
    shapes, types = {name: file.shape(name) for name in file}, {name: file.kind(name) for name in file}
    return Header(shapes=shapes, types=types, metadata=file.metadata)
