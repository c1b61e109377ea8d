"""What the config of a U-Net with motion modules says: AnimateDiff (Guo et al. 2023, arXiv 2307.04725).

The modules are temporal attention in a U-Net of Stable Diffusion; its other layers see each frame alone.
`calotype.plan.networks` has the tensors, `calotype.export.sources.motion_adapter` joins a U-Net and its modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import SourceError

Config = Mapping[str, Any]

UNET, ADAPTER, T2I_ADAPTER = "UNetMotionModel", "motion_adapter", "t2i_adapter"
_USUAL_FRAMES = 16  # of AnimateDiff's training, and of diffusers' pipeline
_POSITIONS = 32  # the class's default


def has_motion(config: Config) -> bool:
    """Return whether the config is that of a U-Net with motion modules."""
    return bool(config.get("_class_name") == UNET)


def positions_of(config: Config) -> int:
    """Return how many frames the motion modules distinguish by their positions."""
    return int(config.get("motion_max_seq_length", _POSITIONS))


def usual_motion_frames(config: Config) -> int:
    """Return the number of frames that the motion modules were trained with."""
    return min(_USUAL_FRAMES, positions_of(config))


def check_motion(configs: Mapping[str, Config]) -> None:
    """Raise `SourceError` unless the configs are those of Stable Diffusion 1.x with motion modules."""
    unet, vae = configs["unet"], configs.get("vae", {})
    if "text_encoder" not in configs or "text_encoder_2" in configs:
        message = "motion modules need a model with one text encoder: Stable Diffusion 1.x."
        raise SourceError(message, path="unet/config.json", field="_class_name")
    if any(name.startswith(T2I_ADAPTER) for name in configs):
        message = "motion modules cannot be combined with a T2I-Adapter. Omit t2i_adapter, or use a ControlNet."
        raise SourceError(message, path="unet/config.json", field="t2i_adapter")
    if any(config.get("_class_name") == "ControlNetUnionModel" for config in configs.values()):
        message = "motion modules cannot be combined with a ControlNet-Union. Use another ControlNet."
        raise SourceError(message, path="unet/config.json", field="controlnet")
    if "latent_channels" not in vae:
        message = f"a {UNET} needs an autoencoder of Stable Diffusion as vae."
        raise SourceError(message, path="vae/config.json", field="_class_name")
    if not unet["in_channels"] == unet["out_channels"] == vae["latent_channels"]:
        raise SourceError(
            f"unet/config.json: in_channels is {unet['in_channels']} and out_channels {unet['out_channels']}; expected "
            f"{vae['latent_channels']} for both (latent_channels in vae/config.json): motion modules that take an "
            "image, as those of PIA, are not supported. Use diffusers for them.",
            path="unet/config.json",
            field="in_channels",
        )
