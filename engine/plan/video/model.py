"""What the configs of a video model say: Stable Video Diffusion (Blattmann et al. 2023, arXiv 2311.15127).

Its U-Net and its decoder mix the frames of a clip. `calotype.plan.networks` has their tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import SourceError

Config = Mapping[str, Any]

UNET, VAE = "UNetSpatioTemporalConditionModel", "AutoencoderKLTemporalDecoder"
HEIGHT, WIDTH = 576, 1024  # of Stable Video Diffusion's training, and of diffusers' pipeline
MAX_FRAMES = 128  # of a clip; the memory is the limit before
IDS = 3  # numbers of `added_time_ids`: frames per second, the bucket of motion, and the strength of noise
_USUAL_FRAMES = 25


def is_video(config: Config) -> bool:
    """Tell whether the config is that of a U-Net over the frames of a clip."""
    return bool(config.get("_class_name") == UNET)


def decodes_clips(config: Config) -> bool:
    """Tell whether an autoencoder's decoder mixes the frames of a clip."""
    return bool(config.get("_class_name") == VAE)


def usual_frames(config: Config) -> int:
    """Return the number of frames that the U-Net was trained with. Raises `SourceError` if it is out of range."""
    frames = config.get("num_frames", _USUAL_FRAMES)
    if not 1 <= frames <= MAX_FRAMES:
        raise _error("num_frames", f"is {frames}; expected 1 to {MAX_FRAMES}")
    return int(frames)


def check_video(configs: Mapping[str, Config]) -> None:
    """Raise `SourceError` unless the configs are those of an image-to-video model."""
    unet, vae = configs["unet"], configs.get("vae")
    if vae is None or not decodes_clips(vae) or "image_encoder" not in configs:
        raise SourceError(
            f"a {UNET} needs a {VAE} as vae and an image_encoder. Use a folder of Stable Video Diffusion.",
            path="unet/config.json",
            field="_class_name",
        )
    channels = int(vae["latent_channels"])
    if unet["in_channels"] != 2 * channels or unet["out_channels"] != channels:
        raise _error(
            "in_channels",
            f"is {unet['in_channels']} and out_channels {unet['out_channels']}; expected {2 * channels} and {channels} "
            f"(latent_channels in vae/config.json, noisy and of the image)",
        )
    got = unet.get("projection_class_embeddings_input_dim", 768)
    if got != IDS * unet.get("addition_time_embed_dim", 256):
        raise _error(
            "projection_class_embeddings_input_dim",
            f"is {got}; expected {IDS} times addition_time_embed_dim ({unet.get('addition_time_embed_dim', 256)})",
        )


def _error(field: str, problem: str) -> SourceError:
    return SourceError(f"unet/config.json: {field} {problem}.", path="unet/config.json", field=field)
