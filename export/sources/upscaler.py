"""Read an upscaler's file: RRDBNet in three key layouts, or the compact network of Real-ESRGAN.

Width, number of blocks and scale come from the shapes of the weights. The weights get the names of our own modules
(`calotype.backends.torch.upscalers`). A pickle (.pth) is read with `weights_only=True`, which runs no code.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calotype.backends.torch.upscalers import new_upscaler
from calotype.errors import SourceError, first_line
from calotype.files.digest import file_digest
from calotype.weights.safetensors import TensorFile

from ..steps.stored_step import StoredStep
from .source import Source

Tensors = Mapping[str, NDArray[np.float32]]
Config = dict[str, Any]

NAME = "upscaler"
READER = 1  # increased when the converted files change
SCALES = (1, 2, 3, 4, 8)
_MAX_DEPTH = 200
_PICKLES = (".pth", ".pt", ".ckpt")
_NESTED = ("params_ema", "params", "state_dict")
_EXPECTED = (
    "expected RRDBNet (ESRGAN, Real-ESRGAN) or the compact network of Real-ESRGAN (SRVGGNetCompact with PReLU), for RGB"
)
# The layer of RRDBNet in Real-ESRGAN's layout, or in that of ESRGAN's later code -> our name.
_LAYERS = {
    **{"conv_first": "first", "conv_body": "after_body", "conv_hr": "fine", "conv_last": "last"},
    **{"trunk_conv": "after_body", "HRconv": "fine"},
}
_DENSE = re.compile(r"(?:body|RRDB_trunk)\.(\d+)\.(?:rdb|RDB)([123])\.conv([1-5])")
_UP = re.compile(r"(?:conv_up|upconv)(\d)")
# ESRGAN's first code numbers its layers.
_OLD_DENSE = re.compile(r"model\.1\.sub\.(\d+)\.RDB([123])\.conv([1-5])\.0")
_OLD_LAYER = re.compile(r"model\.(\d+)")


def read_upscaler(path: Path) -> tuple[Source, Config]:
    """Return an upscaler's file as a folder with a config and weights in the store, and its config.

    Raises:
        SourceError: the file is missing, damaged, or another network.
    """
    if not path.is_file():
        raise SourceError(f"cannot read the upscaler {path}: there is no such file.", path=path)
    digest = file_digest(path)

    def make(folder: Path) -> Mapping[str, Any]:
        from safetensors.numpy import save_file

        config, tensors = describe(_tensors_of(path), path)
        save_file(
            {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / "model.safetensors"
        )
        (folder / "config.json").write_text(json.dumps(config))
        return {}

    step = StoredStep(
        depends_on={"upscaler": digest, "reader": READER},
        label={"component": NAME, "kind": "weights", "precision": "fp32", "model": str(path)},
    )
    folder = step.run(make).folder
    config: Config = json.loads((folder / "config.json").read_text())
    digests = {NAME: f"{digest}:{READER}"}
    parts: dict[str, Any] = {"folders": {NAME: folder}, "digests": digests, "generated": frozenset({NAME})}
    source = Source(model=str(path), folder=folder, configs={}, tokenizers={}, **parts)
    return source, config


def _tensors_of(path: Path) -> Tensors:
    if path.suffix == ".safetensors":
        return TensorFile(path)
    if path.suffix not in _PICKLES:
        expected = f"a .safetensors or {_PICKLES[0]} file"
        raise SourceError(f"cannot read the upscaler {path}: expected {expected}.", path=path)
    import torch

    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as failed:  # torch raises errors of any type
        message = f"cannot read the upscaler {path}: it is no file of weights only ({first_line(failed)})"
        raise SourceError(f"{message:.300}.", path=path) from None
    nested = next((content[name] for name in _NESTED if isinstance(content, dict) and name in content), content)
    items = nested.items() if isinstance(nested, dict) else ()
    return {str(name): t.float().numpy() for name, t in items if isinstance(t, torch.Tensor)}


def describe(tensors: Tensors, path: Path) -> tuple[Config, Tensors]:
    """Return the config and the renamed weights of a network. Raises `SourceError` for another network."""
    names = {name.removeprefix("module.").rpartition(".")[0]: name.rpartition(".")[0] for name in tensors}
    renamed = _compact_names(names) if "body.0" in names else _rrdb_names(names)
    try:
        if len(renamed) != len(names):
            raise LookupError(min(set(names) - set(renamed), default="no weights"))
        ours = {
            f"{renamed[name]}.{part}": tensors[f"{theirs}.{part}"]
            for name, theirs in names.items()
            for part in ("weight", "bias")
            if f"{theirs}.{part}" in tensors
        }
        config = _compact_config(ours) if "body.0.weight" in ours else _rrdb_config(ours)
        _check_shapes(config, ours)
    except (LookupError, ValueError, ArithmeticError) as wrong:
        raise SourceError(
            f"cannot use the upscaler {path}: {_EXPECTED}; got {first_line(wrong):.100}.", path=path
        ) from None
    return config, ours


def _check_shapes(config: Config, tensors: Tensors) -> None:
    """Raise `ValueError` unless the weights are exactly those of the network of the config."""
    import torch

    if scale_of(config) not in SCALES or max(config.get("blocks", 0), config.get("convs", 0)) > _MAX_DEPTH:
        raise ValueError(f"a scale of {scale_of(config):g}, or more than {_MAX_DEPTH} blocks")
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in new_upscaler(config).state_dict().items()}
    got = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | got.keys()):
        if expected.get(name) != got.get(name):
            raise ValueError(f"{name} of shape {got.get(name)} (expected {expected.get(name)})")


def scale_of(config: Mapping[str, Any]) -> float:
    """Return how many times larger the network makes an image."""
    return float(config["scale"]) if config["kind"] == "compact" else 2 ** config["doublings"] / config["unshuffle"]


def _rrdb_names(names: Mapping[str, str]) -> dict[str, str]:
    """Return our name of each layer that is one of RRDBNet's."""
    renamed = {}
    for name in names:
        if dense := _DENSE.fullmatch(name) or _OLD_DENSE.fullmatch(name):
            block, part, conv = map(int, dense.groups())
            renamed[name] = f"body.{block}.dense.{part - 1}.convs.{conv - 1}"
        elif up := _UP.fullmatch(name):
            renamed[name] = f"up.{int(up[1]) - 1}"
        elif name in _LAYERS:
            renamed[name] = _LAYERS[name]
        elif re.fullmatch(r"model\.1\.sub\.\d+", name):
            renamed[name] = "after_body"
    old = sorted((name for name in names if _OLD_LAYER.fullmatch(name)), key=lambda name: int(name.split(".")[1]))
    if len(old) >= 3:  # the first, a convolution for each doubling, and two at the full size
        ends = {old[0]: "first", old[-2]: "fine", old[-1]: "last"}
        renamed |= ends | {name: f"up.{i}" for i, name in enumerate(old[1:-2])}
    return renamed


def _rrdb_config(tensors: Tensors) -> Config:
    width, into = tensors["first.weight"].shape[:2]
    return {
        "kind": "rrdb",
        "width": width,
        "blocks": 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("body.")),
        "growth": tensors["body.0.dense.0.convs.0.weight"].shape[0],
        "doublings": sum(bool(re.fullmatch(r"up\.\d+\.weight", name)) for name in tensors),
        "unshuffle": _root(into),
    }


def _compact_names(names: Mapping[str, str]) -> dict[str, str]:
    return {name: name for name in names if re.fullmatch(r"body\.\d+", name)}


def _compact_config(tensors: Tensors) -> Config:
    last = max(int(name.split(".")[1]) for name in tensors)
    if last < 2 or last % 2 or tensors["body.1.weight"].ndim != 1:
        raise ValueError("a network without PReLU")
    scale = _root(tensors[f"body.{last}.weight"].shape[0])
    return {"kind": "compact", "width": tensors["body.0.weight"].shape[0], "convs": last // 2 - 1, "scale": scale}


def _root(channels: int) -> int:
    """Return s for 3 s^2 channels. Raises `ValueError` for other numbers."""
    root = math.isqrt(channels // 3)
    if 3 * root**2 != channels or not root:
        raise ValueError(f"{channels} channels")
    return root
