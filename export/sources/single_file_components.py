"""An autoencoder, a ControlNet or a U-Net in one file, in the original or in diffusers' layout, without a config.

The config comes from the file's shapes and, for the rest, from the model that the user loads with it. A ControlNet is a
copy of the model's U-Net and gets its config. An autoencoder with the levels of the model's own gets that config with
its scaling factor: a file does not show that SDXL's latents are scaled by 0.13025 and others by 0.18215. The file is
converted once to a folder of the store, as checkpoints are. This module does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from calotype.errors import SourceError
from calotype.files.digest import file_digest
from calotype.files.json_file import read_json
from calotype.plan.networks import UNION_MARK
from calotype.weights.types import check_types

from .configs import MODELS
from .gguf_file import header_of
from .single_file import CONTROL_LORA, UNET, VAE, convert_once, describe_contents
from .weight_files import Header, check_safetensors, weight_files

CONTROL = "control_model."
_OTHERS = {"task_embedding", "difference"}  # files with tensors of a ControlNet that are not one
_FAMILIES = {"sd15": "Stable Diffusion 1.x", "sd21": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL"}
_LATENT_FIELDS = ("scaling_factor", "latents_mean", "latents_std")  # values that no shape shows
_EXPECTED = {
    "vae": "expected Stable Diffusion's encoder and decoder",
    "controlnet": "expected the first half of a U-Net and the layers for the control image",
    "unet": "expected the U-Net of Stable Diffusion",
}
_REMEDY = "Use one of the model's family"
# TAESD's two original files name layers by their positions in a list ("0.weight", "1.conv.0.weight").
_POSITION = re.compile(r"\d+\.(?:conv\.\d+\.|skip\.)?(?:weight|bias)")
_HALVES = {"encoder": "0.weight", "decoder": "1.weight"}  # the first convolution


@dataclass(frozen=True, kw_only=True)
class NetworkFile:
    """A network in one file."""

    what: str  # its common name, with an article
    original: bool  # in the original layout, else in diffusers' layout
    prefix: str  # of its tensors' names; other tensors of the file belong to other networks
    class_name: str  # diffusers' class
    config: Mapping[str, Any]  # fields that the class does not know are ignored


def open_component(path: Path, name: str, own: Mapping[str, Path]) -> Path:
    """Return the file as a folder in diffusers' layout, converted at its first use.

    Args:
        path: the safetensors file. A full checkpoint passed as an autoencoder provides its autoencoder.
        name: the argument that the user passed it as: "vae", "controlnet" or "unet".
        own: the folders of the model: its U-Net, and its autoencoder if it has one.

    Raises:
        SourceError: the file is damaged, holds something else, or is for a model of another family.
    """
    header = header_of(path)
    unet = read_json(own["unet"] / "config.json", "the config of the model")
    vae_config = own["vae"] / "config.json"
    vae = read_json(vae_config, "the config of the model") if vae_config.is_file() else {}
    if name == "controlnet" and CONTROL_LORA in header.shapes:
        return _open_control_lora(path, header, own["unet"], unet)
    try:
        network = (
            controlnet_in(path, header, unet)
            if name == "controlnet"
            else unet_in(path, header, unet)
            if name == "unet"
            else autoencoder_in(path, header, unet, vae)
        )
    except (TypeError, LookupError) as failed:
        raise SourceError(
            f"cannot use {path}: the configs of its model are invalid ({failed}). Fetch the model again.", path=path
        ) from None
    check_types(path, {name: kind for name, kind in header.types.items() if name.startswith(network.prefix)})
    layout = "the original" if network.original else "diffusers'"
    scale = f" (scaling factor {network.config['scaling_factor']})" if "scaling_factor" in network.config else ""
    title = f"{network.what} in {layout} layout{scale}"
    return convert_once(path, title, "convert_component_into", name, **vars(network))


def unet_in(path: Path, header: Header, own: Mapping[str, Any]) -> NetworkFile:
    """Describe the U-Net in a file. `own` is the config of the model's, of which the sizes must be the same."""
    prefixes = (UNET, "unet.", "")
    prefix = next((p for p in prefixes if f"{p}input_blocks.0.0.weight" in header.shapes), None)
    original = prefix is not None
    if prefix is None:
        prefix = next((p for p in prefixes if f"{p}conv_in.weight" in header.shapes), None)
    first = f"{prefix}input_blocks.0.0.weight" if original else f"{prefix}conv_in.weight"
    last = f"{prefix}out.2.weight" if original else f"{prefix}conv_out.weight"
    if prefix is None or last not in header.shapes or len(header.shapes[first]) != 4:
        _unknown(path, header, "unet")
    if header.shapes[first][1] != own.get("in_channels", 4):
        raise SourceError(
            f"{path} is a U-Net with {header.shapes[first][1]} input channels; the model's has "
            f"{own.get('in_channels', 4)}. {_REMEDY}.",
            path=path,
        )
    return NetworkFile(
        what="a U-Net",
        original=original,
        prefix=prefix,
        class_name="UNet2DConditionModel",
        config=_public_fields(own),
    )


def autoencoder_in(path: Path, header: Header, unet: Mapping[str, Any], own: Mapping[str, Any]) -> NetworkFile:
    """Describe the autoencoder in a file. `unet` and `own` (may be empty) are the configs of the model's networks."""
    convolutions = _of_rank(header.shapes, 4)
    prefix = next((p for p in (VAE, "vae.", "") if f"{p}decoder.conv_in.weight" in convolutions), None)
    if prefix is None and {"encoder.layers.0.weight", "decoder.layers.0.weight"} <= convolutions.keys():
        _check_channels(path, convolutions["decoder.layers.0.weight"][1], unet)
        # The class's defaults are its sizes, and its scaling factor is 1.
        return NetworkFile(what="a TAESD", original=False, prefix="", class_name="AutoencoderTiny", config={})
    if prefix is None:
        _unknown(path, header, "vae")
    original = f"{prefix}encoder.down.0.block.0.conv1.weight" in convolutions
    level = re.escape(f"{prefix}encoder.") + (r"down\.(\d+)\.block" if original else r"down_blocks\.(\d+)\.resnets")
    matches = {re.fullmatch(rf"{level}\.0\.conv1\.weight", name): shape[0] for name, shape in convolutions.items()}
    widths = [width for _, width in sorted((int(match[1]), width) for match, width in matches.items() if match)]
    if not widths:
        _unknown(path, header, "vae")
    _check_channels(path, convolutions[f"{prefix}decoder.conv_in.weight"][1], unet)
    is_vae = all(name.startswith(prefix) for name in header.shapes)
    return NetworkFile(
        what="an autoencoder" if is_vae else "a checkpoint (only its autoencoder is used)",
        original=original,
        prefix=prefix,
        class_name="AutoencoderKL",
        config=_autoencoder_config(path, widths, unet, own),
    )


def _check_channels(path: Path, channels: int, unet: Mapping[str, Any]) -> None:
    expected = unet.get("out_channels", 4)
    if channels != expected:
        raise SourceError(
            f"{path} is an autoencoder with {channels} latent channels; the model's U-Net has {expected}. {_REMEDY}.",
            path=path,
        )


def _autoencoder_config(
    path: Path, widths: Sequence[int], unet: Mapping[str, Any], own: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return the config for these levels: the model's own, or the published one with the model's scaling."""
    full = own.get("_class_name") == "AutoencoderKL"
    if full and own.get("block_out_channels") == widths:
        return _public_fields(own)
    published = MODELS["sdxl" if unet.get("addition_embed_type") else "sd15"]["vae"][1]
    if published["block_out_channels"] != widths:
        raise SourceError(
            f"{path} is an autoencoder with levels of width {widths}; expected {published['block_out_channels']} or "
            "those of the model's own. Pass a folder that has its config.",
            path=path,
        )
    return {**published, **({name: own[name] for name in _LATENT_FIELDS if name in own} if full else {})}


def controlnet_in(path: Path, header: Header, unet: Mapping[str, Any]) -> NetworkFile:
    """Describe the ControlNet in a file. `unet` is the config of the model's U-Net."""
    convolutions = _of_rank(header.shapes, 4)
    prefix = next((p for p in (CONTROL, "") if f"{p}input_hint_block.0.weight" in convolutions), None)
    original = prefix is not None
    start = prefix or ""
    if original:
        hints = [f"{start}input_hint_block.{i}.weight" for i in (0, 4, 8, 12)]
    else:
        widening = re.compile(r"controlnet_cond_embedding\.blocks\.(\d*[13579])\.weight")
        numbers = sorted(int(m[1]) for name in header.shapes if (m := widening.fullmatch(name)))
        names = ["conv_in", *(f"blocks.{i}" for i in numbers)]
        hints = [f"controlnet_cond_embedding.{name}.weight" for name in names]
    first = f"{start}input_blocks.0.0.weight" if original else "conv_in.weight"
    union = not original and UNION_MARK in header.shapes
    others = _OTHERS - {UNION_MARK} if union else _OTHERS
    if not {first, *hints} <= convolutions.keys() or not others.isdisjoint(header.shapes):
        _unknown(path, header, "controlnet")
    own = {name.removeprefix(start): shape for name, shape in header.shapes.items() if name.startswith(start)}
    _check_family(path, own, convolutions[first][0], unet)
    if re.search(r"_shuffle(_fp16)?$", path.stem):  # no tensor shows it; ComfyUI goes by the name as well
        raise SourceError(
            f"{path} is a ControlNet that pools its conditions (shuffle), which is not supported.", path=path
        )
    return NetworkFile(
        what="a ControlNet-Union" if union else "a ControlNet",
        original=original,
        prefix=start,
        class_name="ControlNetUnionModel" if union else "ControlNetModel",
        config={
            **_public_fields(unet),
            **({} if original else _attention(header, unet)),
            "in_channels": convolutions[first][1],  # an inpainting model's U-Net has more
            "conditioning_channels": convolutions[hints[0]][1],
            "conditioning_embedding_out_channels": [convolutions[name][0] for name in hints],
            **(_union_fields(header) if union else {}),
        },
    )


def _open_control_lora(path: Path, header: Header, folder: Path, unet: Mapping[str, Any]) -> Path:
    """Return the ControlNet that a Control-LoRA makes of the U-Net in `folder`. Raises `SourceError`."""
    hints = [header.shapes.get(f"input_hint_block.{i}.weight", ()) for i in (0, 4, 8, 12)]
    shapes = dict(header.shapes) | {f"{n[:-5]}.weight": s for n, s in header.shapes.items() if n.endswith(".down")}
    width = next(iter(header.shapes.get("input_blocks.0.0.bias", ())), 0)
    if not width or not all(len(shape) == 4 for shape in hints):
        _unknown(path, header, "controlnet")
    check_types(path, header.types)
    _check_family(path, shapes, width, unet)
    sizes = {"conditioning_channels": hints[0][1], "conditioning_embedding_out_channels": [s[0] for s in hints]}
    base = {str(file): file_digest(file) for file in weight_files(folder, "diffusion_pytorch_model")}
    into = f"{__package__}.control_lora.convert:convert_control_lora_into"
    return convert_once(path, "a Control-LoRA", into, "controlnet", unet=base, config=_public_fields(unet) | sizes)


def _union_fields(header: Header) -> dict[str, int]:
    """Return the sizes of a ControlNet-Union. The published ones have eight heads."""
    types, width = header.shapes[UNION_MARK]
    layers = len({name.split(".")[1] for name in header.shapes if name.startswith("transformer_layes.")})
    projected = header.shapes["spatial_ch_projs.weight"][0]
    sizes = {"num_control_type": types, "num_trans_channel": width}
    return sizes | {"num_trans_layer": layers, "num_proj_channel": projected}


def _check_family(path: Path, shapes: Mapping[str, Sequence[int]], width: int, unet: Mapping[str, Any]) -> None:
    """Raise `SourceError` unless the first level, the text and SDXL's pooled text are as wide as the U-Net's."""
    matrices = _of_rank(shapes, 2)
    text = next((shape[1] for name, shape in matrices.items() if name.endswith(".attn2.to_k.weight")), None)
    added = ("add_embedding.linear_1.weight", "label_emb.0.0.weight")
    pooled = next((matrices[name][1] for name in added if name in matrices), None)
    if not _is_copy_of(unet, width, text, pooled):
        families = [f for m, f in _FAMILIES.items() if _is_copy_of(MODELS[m]["unet"][1], width, text, pooled)]
        family = families[0] if len(families) == 1 else "another family"
        shown = f"text of width {text}" if text else "no text"
        raise SourceError(
            f"{path} is a ControlNet for {family} (first level {width}, {shown}); the model's U-Net has levels "
            f"{unet.get('block_out_channels')} and text of width {unet.get('cross_attention_dim')}. {_REMEDY}.",
            path=path,
        )


def _is_copy_of(unet: Mapping[str, Any], width: int, text: int | None, pooled: int | None) -> bool:
    """Return whether the widths are those of the U-Net. `text` is None for a ControlNet without attention."""
    own = unet.get("projection_class_embeddings_input_dim") if unet.get("addition_embed_type") else None
    widths = unet.get("block_out_channels") or [None]
    return widths[0] == width and text in (None, unet.get("cross_attention_dim")) and pooled == own


def _attention(header: Header, unet: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config fields of the attention blocks: SDXL's smaller ControlNets have fewer than the U-Net."""

    def depth(start: str) -> int | None:
        """Return the transformer blocks per attention under the prefix; None without attention."""
        names = [name for name in header.shapes if name.startswith(start)]
        blocks = re.compile(re.escape(start) + r"\d+\.transformer_blocks\.(\d+)\.")
        return max((int(m[1]) + 1 for name in names if (m := blocks.match(name))), default=0) if names else None

    middle = depth("mid_block.attentions.")
    depths = [depth(f"down_blocks.{i}.attentions.") for i in range(len(unet.get("block_out_channels") or ()))]
    return {
        "down_block_types": ["DownBlock2D" if depth is None else "CrossAttnDownBlock2D" for depth in depths],
        "mid_block_type": "UNetMidBlock2D" if middle is None else "UNetMidBlock2DCrossAttn",
        # diffusers takes the depth of the middle from the last level, even if that has no attention.
        "transformer_layers_per_block": [(middle or 0) if depth is None else depth for depth in depths],
    }


def _of_rank(shapes: Mapping[str, Sequence[int]], rank: int) -> dict[str, Sequence[int]]:
    """Select the shapes with `rank` dimensions: 4 for weights of convolutions, 2 of linear layers."""
    return {name: shape for name, shape in shapes.items() if len(shape) == rank}


def _public_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without diffusers' private fields."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def _unknown(path: Path, header: Header, name: str) -> NoReturn:
    raise SourceError(
        f"{path} holds {describe_contents(header, name)}; {_EXPECTED[name]}, in the original layout or diffusers'.",
        path=path,
    )


def find_taesd(path: Path) -> tuple[Path, Path] | None:
    """Return the encoder's and the decoder's file, for one of the two or their folder; None for something else.

    Raises:
        SourceError: the other half is missing, or the folder has several pairs.
    """
    if path.is_file():
        if path.suffix.lower() != ".safetensors" or not _is_half(check_safetensors(path)):
            return None
        half = next((half for half in _HALVES if half in path.name), None)
        other = next((each for each in _HALVES if each != half), "")
        twin = path.with_name(path.name.replace(half, other)) if half else None
        if half is None or twin is None or not twin.is_file():
            missing = (
                f"expected its {other} in the same folder, as {twin.name}"
                if twin
                else "its name has no encoder or decoder"
            )
            raise SourceError(f"{path} is one half of a TAESD; {missing}.", path=path)
        return (path, twin) if half == "encoder" else (twin, path)
    if (path / "config.json").is_file():
        return None
    decoders = [file for file in sorted(path.glob("*taesd*decoder*")) if file.suffix in (".safetensors", ".pth")]
    usable = [file for file in decoders if file.suffix == ".safetensors"]
    if len(usable) > 1:
        names = " and ".join(file.name for file in usable)
        raise SourceError(f"{path} holds several TAESDs ({names}). Pass one of the files.", path=path)
    if decoders and not usable:
        raise SourceError(
            f"{decoders[0]} is a pickle, which can run any code when it is opened, so it is not read. TAESD's "
            "repository has the same weights as .safetensors: use these.",
            path=decoders[0],
        )
    return find_taesd(usable[0]) if usable else None


def _is_half(header: Header) -> bool:
    return bool(header.shapes) and all(map(_POSITION.fullmatch, header.shapes))


def open_taesd(encoder: Path, decoder: Path, own: Mapping[str, Path]) -> Path:
    """Return the two files as a folder in diffusers' layout, converted at their first use. `own`: the model's folders.

    Raises:
        SourceError: a file is damaged or holds something else, or its latents are not the model's.
    """
    for path, half in ((encoder, "encoder"), (decoder, "decoder")):
        header = check_safetensors(path)
        check_types(path, header.types)
        if not _is_half(header) or len(header.shapes.get(_HALVES[half], ())) != 4:
            raise SourceError(f"{path} is not the {half} of a TAESD.", path=path)
    channels = check_safetensors(decoder).shapes[_HALVES["decoder"]][1]
    expected = read_json(own["unet"] / "config.json", "the config of the model").get("out_channels", 4)
    if channels != expected:
        message = f"{decoder} has {channels} latent channels; the model's U-Net has {expected}. Use one of its family."
        raise SourceError(message, path=decoder)
    arguments = {"decoder": str(decoder), "digest": file_digest(decoder)}
    return convert_once(encoder, "a TAESD in its two original files", "convert_taesd_into", "vae", **arguments)
