"""The input image of a model whose U-Net takes one besides its noisy latents, computed from the model's configs.

Knows configs, not files. `calotype.request` checks the images of a call, `calotype.stages` makes tensors of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SourceError
from ..errors.schema import integer, list_of, mismatch, number, one_of, record
from .video.model import is_video

Config = Mapping[str, Any]

IMAGE_KINDS = ("mask", "edit", "depth", "pixels", "latents", "vision", "video")
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """How the U-Net takes an input image, besides as the start of the denoising.

    Attributes:
        kind: one of `IMAGE_KINDS`. Further channels of the sample: "mask" is a mask and the latents of the masked image
            (inpainting), "edit" the latents of the image (InstructPix2Pix: Brooks et al. 2023, arXiv 2211.09800),
            "depth" a depth map, "pixels" a small image in pixels with noise of a level that is an input, "latents" the
            latents of a small image. In place of text: "vision" is the vector of a vision encoder; "video" is that
            vector, and as further channels of each frame the latents of the image with noise.
        enlarges: the sides of the output are those of the image times this.
        scale: the factor of the image's latents, of kind "edit".
        signal: the variance that an image keeps at each noise level, of kind "pixels".
        shortest: the side to which the shorter side is resized, of kind "vision".
        mean: of each color of the resized image, for a vision encoder.
        std: the deviation of each color.
    """

    kind: str
    enlarges: int = 1
    scale: float = 1.0
    signal: tuple[float, ...] = ()
    shortest: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> ImageInput | None:
        """Return what a plan's manifest holds."""
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in (data or {}).items()}
        return cls(**fields) if fields else None

    @property
    def encodes(self) -> bool:
        """Whether every call encodes the image by the VAE."""
        return self.kind in ("mask", "edit", "latents", "video")

    @property
    def replaces_start(self) -> bool:
        """Whether the image is only a condition: the denoising starts from noise."""
        return self.kind in ("edit", "pixels", "latents", "vision", "video")

    @property
    def sees(self) -> bool:
        """Whether a vision encoder's vector of the image stands in place of text."""
        return self.kind in ("vision", "video")


_COLORS = list_of(number(-1e3, 1e3), max_length=3)
_RECORD = record(
    {
        **{"kind": one_of(*IMAGE_KINDS), "enlarges": integer(1, 64), "scale": number(1e-6, 1e6)},
        **{"signal": list_of(number(0, 1), max_length=100_000), "shortest": integer(0, 4096)},
        **{"mean": _COLORS, "std": _COLORS},
    }
)


def check_image_input(data: Any, where: str) -> None:
    """Check the image input in a plan's manifest; None passes. Raises `SchemaError`."""
    if data is None:
        return
    _RECORD(data, where)
    if data["kind"] == "pixels" and not data["signal"]:
        mismatch(f"{where}.signal", data["signal"], "a number for each noise level")
    if data["kind"] in ("vision", "video") and (
        not len(data["mean"]) == len(data["std"]) == 3 or min(data["std"]) <= 0
    ):
        mismatch(f"{where}.std", data["std"], "a number above 0 for each of three colors, and three in mean")


def image_input_of(configs: Mapping[str, Config], latents: int) -> ImageInput | None:
    """Return how the U-Net of a model with text or a vision encoder takes an image; None if it takes none.

    Args:
        configs: the content of each config, by folder.
        latents: the channels of the autoencoder's latents.

    Raises:
        SourceError: the U-Net has other inputs, or a config has an invalid value.
    """
    unet, index = configs["unet"], configs.get("model_index", {})
    if is_video(unet):
        return replace(_vision(configs), kind="video", shortest=0)
    more, labeled = unet["in_channels"] - latents, unet.get("num_class_embeds") is not None
    if labeled != (more == 3) or unet.get("class_embed_type") is not None:
        field = "class_embed_type" if unet.get("class_embed_type") is not None else "num_class_embeds"
        raise _unet_error(field, f"is {unet.get(field)!r:.80}, an input that Calotype does not support")
    if "image_encoder" in configs and not any(name.startswith("text_encoder") for name in configs):
        return _vision(configs) if more == 0 else None
    if more == latents and unet.get("time_cond_proj_dim") is not None:
        return ImageInput(kind="latents", enlarges=2)
    if more == latents:
        # CosXL's editing model takes scaled latents; others take those of the autoencoder.
        scale = float(configs["vae"].get("scaling_factor", 0.18215)) if index.get("is_cosxl_edit") else 1.0
        return ImageInput(kind="edit", scale=scale)
    if more == 3:
        return ImageInput(
            kind="pixels", enlarges=2 ** (len(configs["vae"]["block_out_channels"]) - 1), signal=_signal(configs)
        )
    if more not in (0, 1, latents + 1):
        raise _unet_error(
            "in_channels",
            f"is {unet['in_channels']}; expected {latents} (latent_channels in vae/config.json), {latents + 1} with a "
            f"depth map, {latents + 3} with a small image, {2 * latents} with another image's latents, or "
            f"{2 * latents + 1} for an inpainting model. Use the U-Net and the autoencoder of the same model",
        )
    return {0: None, 1: ImageInput(kind="depth"), latents + 1: ImageInput(kind="mask")}[more]


def _unet_error(field: str, problem: str) -> SourceError:
    return SourceError(f"unet/config.json: {field} {problem}.", path="unet/config.json", field=field)


def _vision(configs: Mapping[str, Config]) -> ImageInput:
    """Return the preprocessing of a vision encoder's images, from transformers' config; CLIP's where it lacks one."""
    file, settings = "feature_extractor/preprocessor_config.json", configs.get("feature_extractor", {})
    size = settings.get("size", configs["image_encoder"]["image_size"])
    shortest = size.get("shortest_edge", 0) if isinstance(size, dict) else size
    mean, std = settings.get("image_mean", CLIP_MEAN), settings.get("image_std", CLIP_STD)
    crop = 0 if is_video(configs["unet"]) else int(configs["image_encoder"]["image_size"])
    try:
        vision = ImageInput(
            kind="vision", shortest=int(shortest), mean=tuple(map(float, mean)), std=tuple(map(float, std))
        )
    except (TypeError, ValueError):
        vision = ImageInput(kind="vision")
    valid = len(vision.mean) == len(vision.std) == 3 and min(vision.std) > 0 and crop <= vision.shortest <= 4096
    if not valid:
        raise SourceError(
            f"{file}: got size {size!r:.80}, image_mean {mean!r:.80} and image_std {std!r:.80}; expected a size of at "
            f"least {crop} pixels (image_size of the image_encoder), and three colors with deviations above 0.",
            path=file,
            field="size",
        )
    return vision


def _signal(configs: Mapping[str, Config]) -> tuple[float, ...]:
    """Return the shares of `low_res_scheduler` for each noise level that the model was trained with."""
    signal = signal_of(configs["low_res_scheduler"], "low_res_scheduler/scheduler_config.json")
    levels = min(int(configs["model_index"].get("max_noise_level", 350)), configs["unet"]["num_class_embeds"] - 1)
    if levels < 0:
        message = "low_res_scheduler: max_noise_level and num_class_embeds leave no noise level."
        raise SourceError(message, path="unet/config.json", field="num_class_embeds")
    return tuple(float(s) for s in signal[: levels + 1])


def signal_of(config: Mapping[str, Any], file: str) -> NDArray[np.float64]:
    """Return the cumulative product of 1 - beta at each timestep, by a scheduler's config (Ho et al. 2020).

    Args:
        config: the config, in diffusers' fields.
        file: its name, for errors.

    Returns:
        The shares of the image in noisy latents, alpha bar.  # [timesteps]

    Raises:
        SourceError: the schedule of betas is not known, or they are not from 0 to 1.
    """
    steps, kind = config.get("num_train_timesteps", 1000), config.get("beta_schedule", "linear")
    low, high = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
    if config.get("trained_betas") is not None:
        betas = np.array(config["trained_betas"], np.float64)
    elif kind == "linear":
        betas = np.linspace(low, high, steps)
    elif kind == "scaled_linear":
        betas = np.linspace(low**0.5, high**0.5, steps) ** 2
    elif kind == "squaredcos_cap_v2":
        at = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - at[1:] / at[:-1], 0.999)
    else:
        message = f"{file}: beta_schedule is {kind!r:.80}; expected linear, scaled_linear or squaredcos_cap_v2."
        raise SourceError(message, path=file, field="beta_schedule")
    signal = np.asarray(np.cumprod(1 - betas), np.float64)
    if not (np.isfinite(signal).all() and (signal >= 0).all() and (signal <= 1).all()):
        raise SourceError(f"{file}: the betas are not from 0 to 1.", path=file, field="beta_end")
    return signal
