"""An IP-Adapter in one .safetensors file: its kind and sizes, from the names and shapes of its tensors.

Two layouts: the original one (`image_proj.*` and `ip_adapter.*`, as the published files have it), and that of a U-Net
which diffusers loaded adapters into and saved (`encoder_hid_proj.image_projection_layers.N.*` and
`*.attn2.processor.to_k_ip.N.weight`). This module does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calotype.errors import SourceError
from calotype.plan.image_prompts.layers import ADAPTER
from calotype.weights.types import check_types

from ..single_file import convert_once, describe_contents
from ..weight_files import Header, check_safetensors

Shapes = Mapping[str, Sequence[int]]

PROJECTION, KEYS = "image_proj.", "ip_adapter."  # prefixes of the original layout
_DIFFUSERS = re.compile(r"encoder_hid_proj\.image_projection_layers\.(\d+)\.")
_HEAD = 64  # the width of an attention head in all resamplers
_POSITIONS = 257  # states of CLIP's usual encoders: 16 x 16 patches and one for the image
_CONVERT = "calotype.export.sources.ip_adapter.convert:convert_ip_adapter_into"
_EXPECTED = "expected tensors under image_proj and ip_adapter, as the published files have them"


@dataclass(frozen=True, kw_only=True)
class AdapterFile:
    """An adapter in a file: its number there (several in diffusers' layout), its config and its layout."""

    number: int
    original: bool
    config: Mapping[str, Any]


def open_ip_adapter(path: Path) -> list[Path]:
    """Return each adapter of a file as a folder of the store, converted at its first use.

    Raises:
        SourceError: the file is damaged, or holds something else.
    """
    header = check_safetensors(path)
    adapters = adapters_in(path, header)
    check_types(path, header.types)
    folders = []
    for each in adapters:
        title = f"an IP-Adapter ({each.config['kind']}, {len(each.config['widths'])} attentions)"
        folders.append(convert_once(path, title, _CONVERT, ADAPTER, **vars(each)))
    return folders


def adapters_in(path: Path, header: Header) -> list[AdapterFile]:
    """Describe the adapters in a file, from its header. Raises `SourceError` if it has none."""
    shapes = header.shapes
    original = any(name.startswith(PROJECTION) for name in shapes)
    numbers = sorted({int(m[1]) for name in shapes if (m := _DIFFUSERS.match(name))})
    if not original and not numbers:
        raise SourceError(f"{path} holds {describe_contents(header, ADAPTER)}; {_EXPECTED}.", path=path)
    if original:
        projection = {n.removeprefix(PROJECTION): s for n, s in shapes.items() if n.startswith(PROJECTION)}
        pairs = _numbered(shapes)
        return [
            AdapterFile(number=0, original=True, config=_config(path, header.shapes, projection, pairs, original=True))
        ]
    adapters = []
    for number in numbers:
        start = f"encoder_hid_proj.image_projection_layers.{number}."
        projection = {n.removeprefix(start): s for n, s in shapes.items() if n.startswith(start)}
        pairs = [shapes[name] for name in in_order(shapes, number)]
        config = _config(path, header.shapes, projection, pairs, original=False)
        adapters.append(AdapterFile(number=number, original=False, config=config))
    return adapters


def in_order(names: Mapping[str, Any], number: int) -> list[str]:
    """Return the names of the keys' weights in diffusers' layout, in the order of the U-Net's processors."""
    end = f".attn2.processor.to_k_ip.{number}.weight"

    def place(name: str) -> tuple[int, list[int]]:
        side = next((i for i, start in enumerate(("down", "up", "mid")) if name.startswith(start)), 3)
        return side, [int(digits) for digits in re.findall(r"\.(\d+)(?=\.)", name.removesuffix(end))]

    return sorted((name for name in names if name.endswith(end)), key=place)


def _numbered(shapes: Shapes) -> list[Sequence[int]]:
    """Return the shapes of the keys' weights in the original layout, in their order."""
    matches = {m[1]: s for n, s in shapes.items() if (m := re.fullmatch(r"ip_adapter\.(\d+)\.to_k_ip\.weight", n))}
    return [matches[number] for number in sorted(matches, key=int)]


def _config(
    path: Path, names: Shapes, shapes: Shapes, pairs: Sequence[Sequence[int]], *, original: bool
) -> dict[str, Any]:
    """Return the config of an adapter. Raises `SourceError` for a kind that Calotype does not run."""
    if not pairs or any(len(shape) != 2 for shape in pairs):
        raise SourceError(f"{path} has no keys for the U-Net's attentions (to_k_ip); {_EXPECTED}.", path=path)
    try:
        kind = _projection(path, shapes, original=original)
    except (LookupError, ZeroDivisionError) as missing:
        raise SourceError(f"{path} is an IP-Adapter that lacks a tensor ({missing}); {_EXPECTED}.", path=path) from None
    if any(name.startswith(KEYS) and "_lora." in name for name in names):
        raise SourceError(
            f"{path} is a FaceID adapter with LoRA weights inside, which Calotype reads from a file of their own only. "
            "Use the adapter's LoRA file as lora=, and save the adapter without the tensors with _lora in their names.",
            path=path,
        )
    widths = {"widths": [shape[0] for shape in pairs], "cross_attention_dim": pairs[0][1]}
    return {"_class_name": "IPAdapter", **kind, **widths, "file_name": path.name}


def _projection(path: Path, shapes: Shapes, *, original: bool) -> dict[str, Any]:
    """Return the kind of the projection, its diffusers class, and the sizes of what it takes and makes."""
    if "perceiver_resampler.proj_in.weight" in shapes or (
        "proj_in.weight" in shapes and "proj.net.0.proj.weight" in shapes
    ):
        raise SourceError(
            f"{path} is a FaceID Plus adapter, which takes a face's embedding and CLIP's states at once. Calotype "
            "runs FaceID adapters without Plus. Use diffusers for it.",
            path=path,
        )
    plain = "proj" if original else "image_embeds"
    if f"{plain}.weight" in shapes:
        out, width = shapes[f"{plain}.weight"]
        text = shapes["norm.weight"][0]
        arguments = {"cross_attention_dim": text, "image_embed_dim": width, "num_image_text_embeds": out // text}
        return _kind("plain", [width], out // text, "ImageProjection", arguments)
    first, second = ("proj.0.weight", "proj.2.weight") if original else ("ff.net.0.proj.weight", "ff.net.2.weight")
    if first in shapes and (not original or "norm.weight" in shapes) and _is_face_id(shapes, second):
        wide, width = shapes[first]
        text = shapes["norm.weight"][0]
        tokens = shapes[second][0] // text
        arguments = {"cross_attention_dim": text, "image_embed_dim": width, "mult": wide // width, "num_tokens": tokens}
        return _kind("face_id", [width], tokens, "IPAdapterFaceIDImageProjection", arguments)
    if first in shapes:
        wide, width = shapes[first]
        text = shapes["proj.3.weight" if original else "norm.weight"][0]
        arguments = {"cross_attention_dim": text, "image_embed_dim": width}
        return _kind("full", [_POSITIONS, width], _POSITIONS, "IPAdapterFullImageProjection", arguments)
    if "latents" not in shapes:
        raise SourceError(f"{path} is an IP-Adapter of an unknown kind (its projection has no latents).", path=path)
    _, tokens, hidden = shapes["latents"]
    q = next(shape for name, shape in shapes.items() if name.startswith("layers.0.") and name.endswith("to_q.weight"))
    arguments = {
        "embed_dims": shapes["proj_in.weight"][1],
        "output_dims": shapes["proj_out.weight"][0],
        "hidden_dims": hidden,
        "heads": q[0] // _HEAD,
        "num_queries": tokens,
        "depth": len({name.split(".")[1] for name in shapes if name.startswith("layers.")}),
    }
    return _kind("plus", [_POSITIONS, arguments["embed_dims"]], tokens, "IPAdapterPlusImageProjection", arguments)


def _is_face_id(shapes: Shapes, second: str) -> bool:
    """Tell a FaceID projection from that of a full adapter: it makes several tokens of one embedding."""
    return "norm.weight" in shapes and shapes[second][0] != shapes["norm.weight"][0]


def _kind(kind: str, embeds: list[int], tokens: int, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    projection = {"class": name, "arguments": dict(arguments)}
    return {"kind": kind, "image_embeds": embeds, "tokens": tokens, "projection": projection}
