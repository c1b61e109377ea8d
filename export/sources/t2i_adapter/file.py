"""A T2I-Adapter in one .safetensors file: its config, from the shapes of its tensors and the model's U-Net.

Two layouts: the original one (TencentARC/T2I-Adapter: `conv_in.*`, `body.N.block1.*`, and of a light adapter
`body.N.body.M.block1.*`), and diffusers' (`adapter.body.N.resnets.M.block1.*`). This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calotype.errors import SourceError
from calotype.plan.controls.t2i_adapter import ADAPTER, places_of
from calotype.plan.networks import vae_widths
from calotype.weights.types import check_types

from ..single_file import convert_once, describe_contents
from ..weight_files import Header, check_safetensors

PREFIX = "adapter."  # of diffusers' names
_CONVERT = "calotype.export.sources.t2i_adapter.convert:convert_t2i_adapter_into"

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class AdapterFile:
    """An adapter in a file: its config, its layout, and how many layers of the original one are a block."""

    config: Mapping[str, Any]
    original: bool
    each: int


def open_t2i_adapter(path: Path, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> Path:
    """Return an adapter's file as a folder in diffusers' layout, converted at its first use.

    `unet` and `vae` are the configs of the model that it steers: no shape shows the size of the features.

    Raises:
        SourceError: the file is damaged, holds something else, or is for a model of another family.
    """
    header = check_safetensors(path)
    try:
        adapter = adapter_in(path, header, unet, 2 ** (len(vae_widths(vae)) - 1))
    except (LookupError, ValueError, TypeError, ZeroDivisionError) as failed:
        raise SourceError(f"{path} is a T2I-Adapter of an unknown kind ({failed}).", path=path) from None
    check_types(path, header.types)
    title = f"a T2I-Adapter ({adapter.config['adapter_type']})"
    return convert_once(path, title, _CONVERT, ADAPTER, **vars(adapter))


def adapter_in(path: Path, header: Header, unet: Mapping[str, Any], factor: int) -> AdapterFile:
    """Describe the adapter in a file. `factor`: pixels for each latent along a side. Raises `SourceError`."""
    original = not any(name.startswith(f"{PREFIX}body.") for name in header.shapes)
    shapes = {name if original else name.removeprefix(PREFIX): shape for name, shape in header.shapes.items()}
    light, first = "body.0.out_conv.weight" in shapes, "conv_in.weight"
    first = "body.0.in_conv.weight" if light else first
    if first not in shapes or not ({"body.0.block1.weight", "body.0.out_conv.weight"} & shapes.keys() or not original):
        raise SourceError(
            f"{path} holds {describe_contents(header, ADAPTER)}; expected the tensors of a T2I-Adapter, in the "
            "original layout or diffusers'.",
            path=path,
        )
    places = places_of(unet)
    is_xl = places[0][1] > 0  # its first block adds after the halving
    blocks = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("body."))
    each = 1
    if light:
        inner = "body" if original else "resnets"
        layers = len({name.split(".")[3] for name in shapes if name.startswith(f"body.0.{inner}.")})
        channels = [shapes[f"body.{i}.out_conv.weight"][0] for i in range(blocks - 1)]
    elif original:
        features = len(places) if is_xl else len(places) - 1
        each, rest = divmod(blocks, features)
        if rest:
            raise ValueError(f"{blocks} layers for {features} features")
        layers, channels = each, [shapes[f"body.{i * each}.block2.weight"][0] for i in range(features)]
    else:
        layers = len({name.split(".")[3] for name in shapes if name.startswith("body.0.resnets.")})
        channels = [shapes[f"body.{i}.resnets.0.block2.weight"][0] for i in range(blocks)]
    downscale = 2 * factor if is_xl else factor
    config = {
        "_class_name": "T2IAdapter",
        "adapter_type": "light_adapter" if light else "full_adapter_xl" if is_xl else "full_adapter",
        "in_channels": shapes[first][1] // downscale**2,
        "channels": channels,
        "num_res_blocks": layers,
        "downscale_factor": downscale,
    }
    return AdapterFile(config=config, original=original, each=each)
