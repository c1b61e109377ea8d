"""An autoencoder or a ControlNet in one `.safetensors`: in the original layout, or in diffusers' without a config.

What a file's shapes tell is read from them; what they cannot tell is the model's beside which it is named. A ControlNet
is a copy of the model's U-Net, and has its config. An autoencoder whose levels are those of the model's own has that
one's config, its scaling factor among it: the file itself cannot say that SDXL's latents are scaled by 0.13025 and the
others' by 0.18215. Rewritten once into a folder, an entry of the store, as whole checkpoints are. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from calotype.errors import SourceError
from calotype.files.json_file import read_json
from calotype.weights.types import check_types

from .configs import MODELS
from .single_file import VAE, rewritten, what_is_in
from .weight_files import Header, check_safetensors

CONTROL = "control_model."
_OTHERS = {"task_embedding", "difference", "lora_controlnet"}  # that have a ControlNet's tensors, and are none
_FAMILIES = {"sd15": "Stable Diffusion 1.x", "sd21": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL"}
_OF_LATENTS = ("scaling_factor", "latents_mean", "latents_std")  # what the U-Net was trained on: no matter of shapes
_WHOLE = {
    "vae": "an autoencoder in one file has Stable Diffusion's encoder and decoder",
    "controlnet": "a ControlNet in one file has a U-Net's first half and what takes the control picture",
}
_MEND = "take one of the model's own family"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A network in one file.

    Attributes:
        what: as people call it, with an article.
        original: is it in the original layout? Else in diffusers'.
        prefix: what the names of its tensors begin with; those of other names are not its.
        class_name: diffusers' class.
        config: what it is made of; fields that its class does not know are left out.
    """

    what: str
    original: bool
    prefix: str
    class_name: str
    config: Mapping[str, Any]


def part_opened(path: Path, name: str, own: Mapping[str, Path]) -> Path:
    """The file as a folder in diffusers' layout, made at its first use.

    Args:
        path: the safetensors file. Of a whole checkpoint given as an autoencoder, its autoencoder is taken.
        name: what it was named as: "vae" or "controlnet".
        own: the folders of the model that it is to go with: its U-Net's, and its own autoencoder's where it has one.

    Raises:
        SourceError: the file is damaged, holds something else, or is made for a model of another family.
    """
    header = check_safetensors(path)
    unet = _config(own["unet"] / "config.json")
    coded = own["vae"] / "config.json"
    try:
        if name == "controlnet":
            found = controlnet_in(path, header, unet)
        else:
            found = autoencoder_in(path, header, unet, _config(coded) if coded.is_file() else {})
    except (TypeError, LookupError) as odd:
        raise SourceError(
            f"the configs of the model beside {path} do not make sense ({odd}); fetch it again."
        ) from None
    check_types(path, {name: kind for name, kind in header.types.items() if name.startswith(found.prefix)})
    layout = "the original" if found.original else "diffusers'"
    scale = f" (its latents times {found.config['scaling_factor']})" if "scaling_factor" in found.config else ""
    folder, _ = rewritten(
        path,
        f"{found.what} in {layout} layout{scale}",
        "convert_part_into",
        name,
        what=found.what,
        original=found.original,
        prefix=found.prefix,
        class_name=found.class_name,
        config=found.config,
    )
    return folder


def autoencoder_in(path: Path, header: Header, unet: Mapping[str, Any], own: Mapping[str, Any]) -> Part:
    """The autoencoder in a file, for a model of these configs (of its autoencoder: nothing where it has none)."""
    convolutions = _of_rank(header.shapes, 4)
    prefix = next((p for p in (VAE, "vae.", "") if f"{p}decoder.conv_in.weight" in convolutions), None)
    if prefix is None and {"encoder.layers.0.weight", "decoder.layers.0.weight"} <= convolutions.keys():
        _check_channels(path, convolutions["decoder.layers.0.weight"][1], unet)
        # The class's defaults are its sizes, and it scales by nothing.
        return Part(what="a TAESD", original=False, prefix="", class_name="AutoencoderTiny", config={})
    if prefix is None:
        _unknown(path, header, "vae")
    original = f"{prefix}encoder.down.0.block.0.conv1.weight" in convolutions
    level = re.escape(f"{prefix}encoder.") + (r"down\.(\d+)\.block" if original else r"down_blocks\.(\d+)\.resnets")
    found = {re.fullmatch(rf"{level}\.0\.conv1\.weight", name): shape[0] for name, shape in convolutions.items()}
    widths = [width for _, width in sorted((int(at[1]), width) for at, width in found.items() if at)]
    if not widths:
        _unknown(path, header, "vae")
    _check_channels(path, convolutions[f"{prefix}decoder.conv_in.weight"][1], unet)
    alone = all(name.startswith(prefix) for name in header.shapes)
    return Part(
        what="an autoencoder" if alone else "a checkpoint whose autoencoder is taken,",
        original=original,
        prefix=prefix,
        class_name="AutoencoderKL",
        config=_of_autoencoder(path, widths, unet, own),
    )


def _check_channels(path: Path, channels: int, unet: Mapping[str, Any]) -> None:
    wanted = unet.get("out_channels", 4)
    if channels != wanted:
        raise SourceError(
            f"{path} is an autoencoder of {channels} latent channels, and the model's U-Net has {wanted}; {_MEND}."
        )


def _of_autoencoder(
    path: Path, widths: Sequence[int], unet: Mapping[str, Any], own: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The config of an autoencoder of such levels: the model's own, or the published one with the model's scaling."""
    full = own.get("_class_name") == "AutoencoderKL"
    if full and own.get("block_out_channels") == widths:
        return _said(own)
    published = MODELS["sdxl" if unet.get("addition_embed_type") else "sd15"]["vae"][1]
    if published["block_out_channels"] != widths:
        raise SourceError(
            f"{path} is an autoencoder of levels {widths} wide; read are those of {published['block_out_channels']}, "
            "and of the model's own. Name a folder that has its config."
        )
    return {**published, **({name: own[name] for name in _OF_LATENTS if name in own} if full else {})}


def controlnet_in(path: Path, header: Header, unet: Mapping[str, Any]) -> Part:
    """The ControlNet in a file, for a model with a U-Net of this config."""
    convolutions = _of_rank(header.shapes, 4)
    prefix = next((p for p in (CONTROL, "") if f"{p}input_hint_block.0.weight" in convolutions), None)
    original = prefix is not None
    start = prefix or ""
    hints = [f"{start}input_hint_block.{i}.weight" for i in (0, 4, 8, 12)] if original else _hints(header)
    first = f"{start}input_blocks.0.0.weight" if original else "conv_in.weight"
    if not {first, *hints} <= convolutions.keys() or not _OTHERS.isdisjoint(header.shapes):
        _unknown(path, header, "controlnet")
    own = {name.removeprefix(start): shape for name, shape in header.shapes.items() if name.startswith(start)}
    _check_family(path, own, convolutions[first][0], unet)
    if re.search(r"_shuffle(_fp16)?$", path.stem):  # no tensor tells it; ComfyUI knows it by its name as well
        raise SourceError(
            f"{path} is a ControlNet that pools its conditions (shuffle), which this version does not do."
        )
    return Part(
        what="a ControlNet",
        original=original,
        prefix=start,
        class_name="ControlNetModel",
        config={
            **_said(unet),
            **({} if original else _attention(header, unet)),
            "in_channels": convolutions[first][1],  # an inpainting model's U-Net takes more
            "conditioning_channels": convolutions[hints[0]][1],
            "conditioning_embedding_out_channels": [convolutions[name][0] for name in hints],
        },
    )


def _hints(header: Header) -> list[str]:
    """Of a ControlNet in diffusers' layout, the convolutions after which the control picture's states are wider."""
    start, widening = "controlnet_cond_embedding.", r"blocks\.\d*[13579]\.weight"
    names = [name for name in header.shapes if re.fullmatch(re.escape(start) + widening, name)]
    return [f"{start}conv_in.weight", *sorted(names, key=lambda name: int(name.split(".")[2]))]


def _check_family(path: Path, shapes: Mapping[str, Sequence[int]], width: int, unet: Mapping[str, Any]) -> None:
    """`SourceError` unless the first level, the text and what SDXL adds are as wide as the U-Net's."""
    matrices = _of_rank(shapes, 2)
    text = next((shape[1] for name, shape in matrices.items() if name.endswith(".attn2.to_k.weight")), None)
    added = ("add_embedding.linear_1.weight", "label_emb.0.0.weight")
    pooled = next((matrices[name][1] for name in added if name in matrices), None)
    if not _is_of(unet, width, text, pooled):
        families = [told for model, told in _FAMILIES.items() if _is_of(MODELS[model]["unet"][1], width, text, pooled)]
        family = families[0] if len(families) == 1 else "another family"
        seen = f"text {text} wide" if text else "no text"
        raise SourceError(
            f"{path} is a ControlNet for {family} (levels from {width}, {seen}), and the model's U-Net has levels of "
            f"{unet.get('block_out_channels')} and text {unet.get('cross_attention_dim')} wide; {_MEND}."
        )


def _is_of(unet: Mapping[str, Any], width: int, text: int | None, pooled: int | None) -> bool:
    """Is it a copy of such a U-Net? One without attention does not say how wide the text is."""
    own = unet.get("projection_class_embeddings_input_dim") if unet.get("addition_embed_type") else None
    widths = unet.get("block_out_channels") or [None]
    return widths[0] == width and text in (None, unet.get("cross_attention_dim")) and pooled == own


def _attention(header: Header, unet: Mapping[str, Any]) -> dict[str, Any]:
    """Where it attends, and how deep: SDXL's smaller ones have less than the U-Net."""
    middle = _depth(header, "mid_block.attentions.")
    depths = [_depth(header, f"down_blocks.{i}.attentions.") for i in range(len(unet.get("block_out_channels") or ()))]
    return {
        "down_block_types": ["DownBlock2D" if depth is None else "CrossAttnDownBlock2D" for depth in depths],
        "mid_block_type": "UNetMidBlock2D" if middle is None else "UNetMidBlock2DCrossAttn",
        # The middle is as deep as the last level says, even where that has no attention.
        "transformer_layers_per_block": [(middle or 0) if depth is None else depth for depth in depths],
    }


def _depth(header: Header, start: str) -> int | None:
    """Transformer blocks in each attention that begins so; None where there is no attention."""
    names = [name for name in header.shapes if name.startswith(start)]
    blocks = re.compile(re.escape(start) + r"\d+\.transformer_blocks\.(\d+)\.")
    return max((int(m[1]) + 1 for name in names if (m := blocks.match(name))), default=0) if names else None


def _of_rank(shapes: Mapping[str, Sequence[int]], rank: int) -> dict[str, Sequence[int]]:
    """The shapes of so many sizes: 4 of a convolution's weight, 2 of a linear layer's."""
    return {name: shape for name, shape in shapes.items() if len(shape) == rank}


def _config(path: Path) -> dict[str, Any]:
    return read_json(path, "what is named beside the model is read with its config")


def _said(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what diffusers notes of itself in it."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def _unknown(path: Path, header: Header, name: str) -> NoReturn:
    raise SourceError(f"{path} holds {what_is_in(header, name)}; {_WHOLE[name]}, in the original layout or diffusers'.")
