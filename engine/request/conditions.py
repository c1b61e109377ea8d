"""The input image as a condition of the U-Net: checks of its arguments, and the depth map or vision input as arrays.

For models with a `calotype.plan.image_input.ImageInput`. Does not know networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError
from ..errors.validation import check_float, check_int
from ..images.arrays import Pixels, as_list, load_mask_array, read_image, to_array
from ..images.resample import bicubic_matrix, vision_crop, vision_squeeze
from ..plan.image_input import ImageInput
from ..plan.plan import Plan
from .arguments.video import VideoArguments
from .request import Request

Floats = NDArray[np.float32]

IMAGE_GUIDANCE, NOISE_LEVEL = 1.5, 20  # diffusers' defaults
_NEEDS = {
    "image_guidance_scale": ("edit", "a model that edits images by instructions (InstructPix2Pix)"),
    "noise_level": ("pixels", "an upscaler whose U-Net takes the small image's pixels"),
    "depth_map": ("depth", "a depth model, whose U-Net takes a depth map"),
    **{each.name: ("video", "a model that makes videos of an image") for each in fields(VideoArguments)},
    **dict.fromkeys(("frames", "fps", "decode_chunk_size"), ("clips", "a model that makes clips")),
    "video": ("animates", "motion modules (motion_adapter=)"),
}
# What a model that makes clips of a prompt does not take.
_OF_IMAGES = ("image", "mask_image", "strength", "denoising_start", "hires", "padding_mask_crop")
_DEPTHS = "a file, a PIL image, or numbers [H, W] or [N, H, W], finite and not all equal"


def check_condition(request: Request, plan: Plan, *, has_image: bool, has_latents: bool, has_mask: bool) -> None:
    """Raise `InputError` if the image arguments do not fit the way in which the model takes an image."""
    takes = plan.image_input
    for name, (kind, needed) in _NEEDS.items():
        has = plan.takes(kind) or (kind == "clips" and plan.makes_clips) or (kind == "animates" and plan.animates)
        if getattr(request, name) is not None and not has:
            raise InputError(f"{name} needs {needed}. Omit {name}.", argument=name)
    for name in _OF_IMAGES if plan.animates else ():
        if getattr(request, name) is not None and not (name == "strength" and request.video is not None):
            message = f"this model makes clips of a prompt, or of video=, and does not take {name}. Omit it."
            raise InputError(message, argument=name)
    if takes is None:
        return
    if request.hires is not None and takes.kind != "vision":
        message = "hires needs a model that takes no image as a condition. Pass the result to an upscaler instead."
        raise InputError(message, argument="hires")
    if takes.kind in ("pixels", "vision", "video") and has_latents:
        raise InputError("this model takes pixels as image=, got latents. Decode them first.", argument="image")
    if takes.kind == "depth" and request.depth_map is None:
        if not has_image or has_latents:
            raise InputError("a depth model needs depth_map=, or pixels as image=.", argument="depth_map")
        if plan.depth_estimator is None:
            raise InputError(
                "a depth model without a depth estimator needs depth_map=. Pass one, or load a folder that has "
                "depth_estimator/.",
                argument="depth_map",
            )
    if not takes.replaces_start:
        return
    if not has_image:
        raise InputError("this model needs an input image. Pass one as image=.", argument="image")
    for name in ("mask_image", "strength", "denoising_start"):
        if getattr(request, name) is not None:
            raise InputError(
                f"this model takes the image as a condition and starts from noise, so {name} has no effect. Omit it.",
                argument=name,
            )


def image_guidance_of(request: Request, plan: Plan) -> float | None:
    """Return the strength of the input image; None for a model without it. Raises `InputError`."""
    if not plan.takes("edit"):
        return None
    value = request.image_guidance_scale
    return check_float("image_guidance_scale", IMAGE_GUIDANCE if value is None else value, 100)


def noise_level_of(request: Request, takes: ImageInput | None) -> int | None:
    """Return the level of noise on the input image; None for a model without it. Raises `InputError`."""
    if takes is None or takes.kind != "pixels":
        return None
    last, level = len(takes.signal) - 1, request.noise_level
    return min(NOISE_LEVEL, last) if level is None else check_int("noise_level", level, 0, last)


def depth_from(value: Any, prompts: int, count: int, size: tuple[int, int]) -> Floats | None:
    """Return the depth maps of a call, from -1 to 1 and of `size` (height, width); None without any.

    Raises `InputError`.  # one, or one for each of `prompts` prompts -> float32 [count, 1, height, width]
    """
    if value is None:
        return None
    value = to_array(value)
    if isinstance(value, np.ndarray) and value.ndim == 3 and value.shape[-1] not in (1, 3, 4):
        value = list(value)
    maps = [_depth_array(each) for each in as_list(value)]
    if len(maps) not in (1, prompts):
        raise InputError(
            f"pass one depth_map, or one for each of {prompts} prompts; got {len(maps)}.",
            argument="depth_map",
            got=len(maps),
        )
    return normalized_depths(maps, *size).repeat(count // len(maps), axis=0)


def normalized_depths(maps: Sequence[NDArray[Any]], height: int, width: int) -> Floats:
    """Resize depth maps as torch's bicubic interpolation does, and scale each to -1 to 1. Raises `InputError`.

    # n x [H, W] -> float32 [n, 1, height, width]
    """
    resized = np.stack([bicubic_matrix(d.shape[0], height) @ d @ bicubic_matrix(d.shape[1], width).T for d in maps])[
        :, None
    ]
    low, high = (end(resized, axis=(1, 2, 3), keepdims=True) for end in (np.amin, np.amax))
    if (low == high).any():
        raise InputError(f"depth_map has one value everywhere; expected {_DEPTHS}.", argument="depth_map")
    return np.asarray(2 * (resized - low) / (high - low) - 1, dtype=np.float32)


def _depth_array(value: Any) -> NDArray[np.float64]:
    value = read_image(value, "depth_map") if isinstance(value, (str, Path)) else to_array(value)
    if isinstance(value, Image.Image):
        value = np.asarray(value if value.mode[0] in "IF" else value.convert("L"))
    if isinstance(value, np.ndarray) and value.ndim == 3 and value.shape[-1] in (1, 3, 4):
        value = load_mask_array(value)[..., 0]
    if isinstance(value, np.ndarray) and value.ndim == 3 and len(value) == 1:
        value = value[0]
    shape = f"an array of shape {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
    if not isinstance(value, np.ndarray) or value.ndim != 2 or 0 in value.shape or value.dtype.kind not in "biuf":
        raise InputError(f"depth_map must be {_DEPTHS}; got {shape}.", argument="depth_map", got=shape)
    if not np.isfinite(value).all():
        raise InputError(f"depth_map must be {_DEPTHS}; got numbers that are not finite.", argument="depth_map")
    return value.astype(np.float64)


def vision_pixels(images: Sequence[Pixels], takes: ImageInput, side: int, count: int) -> Floats:
    """Resize, crop and scale images as CLIP's processor does, or as Stable Video Diffusion does.

    # n x [H, W, 3] -> float32 [count, 3, side, side]
    """
    if takes.kind == "video":
        crops = [vision_squeeze(pixels, side, takes.mean, takes.std) for pixels in images]
    else:
        crops = [vision_crop(pixels, takes.shortest, side, takes.mean, takes.std) for pixels in images]
    return np.stack(crops).repeat(count // len(crops), axis=0)
