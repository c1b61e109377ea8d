"""The parts of a model's folder: its networks and tokenizers, from `model_index.json`, the folders and their configs.

The class of the pipeline does not matter: an image-to-image, inpainting, ControlNet or PAG class, or one of the
community, has the parts of its text-to-image class. Opens no weights. `calotype.plan.family` reads the configs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calotype.errors import SourceError
from calotype.plan.video.model import UNET, VAE
from calotype.plan.video.motion import ADAPTER as MOTION_ADAPTER
from calotype.plan.video.motion import UNET as MOTION_UNET

from .misnamed import describe_export

Config = Mapping[str, Any]

NETWORKS = re.compile(r"text_encoder(_2)?|image_encoder|unet|vae|vqvae|motion_adapter|controlnet(_\d+)?")
TOKENIZERS: Mapping[str, str] = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
# name of a part -> the file of its config
SETTINGS: Mapping[str, str] = {
    "low_res_scheduler": "scheduler_config.json",
    "feature_extractor": "preprocessor_config.json",
}
# name of a network -> the classes of diffusers that its config may name
CLASSES: Mapping[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel", "UNet2DModel", UNET, MOTION_UNET),
    "controlnet": ("ControlNetModel", "ControlNetUnionModel"),
    "vae": ("AutoencoderKL", "AutoencoderTiny", "VQModel", VAE),
}
_AUTOENCODERS = ("vae", "vqvae")
_CLIP = ("clip_text_model", "clip")  # the model_type of text encoders
_VISION = ("clip_vision_model", "clip")
# Parts that change no image, or that take inputs that a call need not have.
_OPTIONAL: tuple[str, ...] = (
    "safety_checker",
    "image_encoder",
    "scheduler",
    "watermark",
    "controlnet",
    "adapter",
    "depth_estimator",
    MOTION_ADAPTER,
    *SETTINGS,
)
_OPTIONAL += tuple(TOKENIZERS.values())


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of a model, by name.

    Attributes:
        networks: name in diffusers' layout (text_encoder, unet, vae) -> folder. A VQ autoencoder is `vae` as well.
        controlnets: the folders of the model's own ControlNets.
        tokenizers: text encoder -> the folder of its tokenizer.
        settings: further configs that images depend on, name -> file.
        depth_estimator: the folder of a depth model's estimator.
        unused: parts that Calotype does not run, each with its class.
    """

    networks: Mapping[str, Path]
    controlnets: tuple[Path, ...]
    tokenizers: Mapping[str, Path]
    settings: Mapping[str, Path]
    depth_estimator: Path | None
    unused: tuple[str, ...]


def parts_of(folder: Path, index: Config) -> Parts:
    """Return the parts of a model's folder. `index`: its `model_index.json`.

    Raises `SourceError` if it has no U-Net.
    """
    listed, known = _listed(index), (*TOKENIZERS, "unet", *_AUTOENCODERS)
    names = {name for name in known if name in listed or _is_unlisted(folder, name, index)}
    if not (folder / "unet" / "config.json").is_file() and (export := describe_export(folder)):
        raise SourceError(export, path=folder)
    if "unet" not in names:
        others = " and ".join(f"{name} ({kind})" for name, kind in listed.items() if name not in _OPTIONAL)
        raise other_model(folder, index, f"has {others or 'no networks'}, and no unet")
    networks = {name: folder / name for name in (*TOKENIZERS, "unet") if name in names}
    if autoencoder := next((name for name in _AUTOENCODERS if name in names), None):
        networks["vae"] = folder / autoencoder
    if "image_encoder" in listed and not names & {*TOKENIZERS}:  # with text it is that of an IP-Adapter
        networks = {"image_encoder": folder / "image_encoder", **networks}
    settings = {name: folder / name / file for name, file in SETTINGS.items() if name in listed}
    if "image_encoder" not in networks:  # its processor; that of a safety checker changes no image
        settings.pop("feature_extractor", None)
    controlnets: list[Path] = []
    if "controlnet" in listed:  # diffusers writes several as controlnet, controlnet_1, ...
        controlnets = [folder / "controlnet"]
        while (following := folder / f"controlnet_{len(controlnets)}").is_dir():
            controlnets.append(following)
    return Parts(
        networks=networks,
        controlnets=tuple(controlnets),
        tokenizers={name: folder / TOKENIZERS[name] for name in networks if name in TOKENIZERS},
        settings={name: file for name, file in settings.items() if file.is_file()},
        depth_estimator=folder / "depth_estimator" if "depth_estimator" in listed else None,
        unused=tuple(f"{name} ({kind})" for name, kind in listed.items() if name not in (*known, *_OPTIONAL)),
    )


def _listed(index: Config) -> dict[str, str]:
    """Return the parts that the index lists, name -> class. Those that are null, and settings, are no parts."""
    pairs = {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    return {name: kind for name, (library, kind) in pairs.items() if isinstance(library, str) and isinstance(kind, str)}


def _is_unlisted(folder: Path, name: str, index: Config) -> bool:
    """Tell whether the folder has a part that the index forgets. An index that says null does not forget it."""
    return name not in index and (folder / name / "config.json").is_file()


def check_parts(folder: Path, index: Config, configs: Mapping[str, Config]) -> None:
    """Check that the model's own networks are of classes that Calotype runs. Raises `SourceError`."""
    for name, config in configs.items():
        encoders = {**dict.fromkeys(TOKENIZERS, _CLIP), "image_encoder": _VISION}
        field, known = ("model_type", encoders[name]) if name in encoders else ("_class_name", CLASSES[name])
        if (kind := config.get(field)) not in (*known, None):
            raise other_model(folder, index, f"has a {kind!s:.80} as {name}")
    if configs["unet"].get("_class_name") != "UNet2DModel":
        for needed in (("vae",), (*TOKENIZERS, "image_encoder")):
            if not any(name in configs for name in needed):
                raise other_model(folder, index, f"has no {' or '.join(needed)}")


def other_model(folder: Path, index: Config, reason: str) -> SourceError:
    """Return the error for a model that Calotype does not run: `reason` says what it has or lacks."""
    kind = f"{index.get('_class_name', 'model')!s:.80}"
    message = (
        f"{folder} holds {kind}, which {reason}; Calotype runs the U-Nets of Stable Diffusion 1.x, 2.x and XL, "
        f"of Stable Video Diffusion and AnimateDiff, and U-Nets without text. Use diffusers for it: "
        f"diffusers.DiffusionPipeline.from_pretrained({str(folder)!r})."
    )
    return SourceError(message, path=folder, field="_class_name")


def stem_of(name: str) -> str:
    """Return the stem of a network's weight file: transformers' for encoders of text and images, else diffusers'.

    An upscaler's, which `sources.upscaler` writes, is that of transformers.
    """
    return "model" if name.startswith(("text", "image", "upscaler")) else "diffusion_pytorch_model"
