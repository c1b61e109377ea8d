"""Files of weights, checked before any library opens them: whole safetensors, and no pickles. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from calotype.errors import SourceError
from calotype.files.json_file import read_json
from calotype.weights.folder import shard_names
from calotype.weights.safetensors import TensorFile

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
EXPORTS = {  # how other programs' files end that hold a network and no weights that are read here -> what they are
    ".onnx": "an ONNX export, as Optimum writes it",
    ".xml": "an OpenVINO export",
    ".gguf": "quantized weights in GGUF",
    ".engine": "a TensorRT engine",
}
EXPORTED = "Calotype makes its own exports: name the diffusers folder or the .safetensors checkpoint that it came from"
_PICKLED = "a pickle, which can run any code when it is opened, so it is not read. Convert it where you trust it"


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a safetensors file says of itself."""

    shapes: Mapping[str, Sequence[int]]
    types: Mapping[str, str]  # F16, BF16, I8, ... as the format calls them
    metadata: Mapping[str, str]


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors of one component, each checked to be whole: one file, or the shards of an index.

    Where a folder has the weights in fp16 alone, it is these.
    """
    for variant in ("", ".fp16"):
        whole, index = folder / f"{stem}{variant}.safetensors", folder / f"{stem}.safetensors.index{variant}.json"
        if whole.is_file() or index.is_file():
            names = [whole.name] if whole.is_file() else shard_names(folder, read_json(index, "the list of shards"))
            files = [folder / name for name in names]
            for file in files:
                check_safetensors(file)
            return files
    raise SourceError(_no_weights(folder, folder / f"{stem}.safetensors"))


def _no_weights(folder: Path, wanted: Path) -> str:
    pickled = pickles_in(folder)
    if pickled:
        return (
            f"{folder / pickled[0]} is {_PICKLED}: load the model with diffusers and save it with "
            "save_pretrained(..., safe_serialization=True)."
        )
    exports = [path for path in sorted(folder.glob("*")) if path.suffix in EXPORTS]
    if exports:
        return f"{exports[0]} is {EXPORTS[exports[0].suffix]}. {EXPORTED}."
    return f"{wanted} is missing; weights are read from safetensors."


def pickles_in(folder: Path) -> list[str]:
    """The names of the pickles that lie in a folder."""
    return [path.name for path in sorted(folder.glob("*")) if path.suffix in PICKLES]


def refusal_of_pickle(path: Path, elder: str = "StableDiffusionPipeline") -> str:
    """Why a file that is a pickle is not read, and what to do with `elder`, the class of diffusers that reads it."""
    line = f"{elder}.from_single_file({path.name!r}).save_pretrained({path.stem!r})"
    return f"{path} is {_PICKLED}: diffusers' {line} writes a folder of safetensors, to be named in its place."


def check_safetensors(path: Path) -> Header:
    """What the file says of itself. `SourceError` unless it is as long as its header says."""
    file = TensorFile(path)
    types = {name: file.kind(name) for name in file}
    return Header(shapes={name: file.shape(name) for name in file}, types=types, metadata=file.metadata)


def count_weights(folder: Path, stem: str) -> int:
    """How many numbers the component's safetensors hold, by their headers."""
    files = weight_files(folder, stem)
    return sum(math.prod(shape) for file in files for shape in check_safetensors(file).shapes.values())
