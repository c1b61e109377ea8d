"""The arguments of a call that pass images: of image-to-image, inpainting, ControlNets and adapters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .argument import argument, numbers_from, truth_from

if TYPE_CHECKING:  # the command line reads this table, and imports neither numpy nor PIL for it
    from ...images.arrays import Images

OneOrMore = float | Sequence[float]


@dataclass(frozen=True, kw_only=True)
class ImageArguments:
    """Input images, and how much of them stays. Each field has its text."""

    image: Images = argument(
        "Input of image-to-image, inpainting, editing and upscaling.",
        "One, or one for each prompt: files, PIL images, arrays [H, W, 3] or torch tensors [3, H, W] or [B, 3, H, W], "
        "of bytes or of floats in [0, 1], which are resized to the output size. Or latents [N, C, h, w] from "
        'output_type="latent": one, one for each prompt, or one for each image.',
        default=None,
        option=Path,
    )
    mask_image: Images = argument(
        "Inpainting mask: white is repainted, black is kept.",
        "One, or one for each prompt, in the types of `image`. Gray counts as the nearer of the two.",
        default=None,
        option=Path,
    )
    soft_mask: bool = argument(
        "Gray in the mask is the share of the steps that may change a pixel (differential image-to-image).",
        "White changes from the first step on, middle gray in the second half of the steps, black never (Levin and "
        "Fried 2023, arXiv 2306.00950). Inpainting models take hard masks only.",
        default=False,
        option=bool,
        key="soft_mask",
        read=truth_from,
    )
    padding_mask_crop: int | None = argument(
        "Inpaint only the area around the mask, with this many pixels around it.",
        "0 or more. The area is generated at the output size, which is the model's without width and height, and laid "
        "over the input image. One image and one mask.",
        default=None,
        option=int,
        key="padding_mask_crop",
        read=int,
    )
    image_guidance_scale: float | None = argument(
        "Strength of the input image, for a model that edits by instructions; below 1 turns guidance off.",
        "0 to 100. A high value keeps more of the image, a high guidance_scale follows the prompt more.",
        default=None,
        option=float,
        shown_default="1.5",
        key="image_guidance_scale",
        read=float,
    )
    depth_map: Any = argument(
        "Depth of the scene, for a depth model: brighter is nearer.",
        "One, or one for each prompt: a file, a PIL image, or numbers [H, W] of any range and size, as an array or a "
        "torch tensor. The default is the estimate of the model's depth estimator on `image`.",
        default=None,
        option=Path,
    )
    noise_level: int | None = argument(
        "Noise that an upscaler adds to the input image: more noise invents more detail.",
        "From 0 to the model's limit (usually 350).",
        default=None,
        option=int,
        shown_default="20",
        key="noise_level",
        read=int,
    )
    strength: float | None = argument(
        "How much the input image may change, 0 to 1.",
        "The fraction of the steps that run on `image`.",
        default=None,
        option=float,
        shown_default="0.8; with a mask 1",
        key="strength",
        read=float,
    )
    denoising_start: float | None = argument(
        "Fraction of the schedule, 0 to 1, at which this call takes over the latents of another model.",
        default=None,
        key="denoising_start",
        read=float,
    )
    denoising_end: float | None = argument(
        "Fraction of the schedule, 0 to 1, at which this call hands its latents to another model.",
        default=None,
        key="denoising_end",
        read=float,
    )
    control_image: Images = argument(
        "An input image for each ControlNet.",
        "For each ControlNet one image, or one for each prompt, in the types of `image`. None turns the ControlNets "
        "off.",
        default=None,
        option=list[Path],
    )
    control_mode: Any = argument(
        "The type of each control image of a ControlNet-Union, as a number; several make it see several images.",
        "A number, or a list with one for each image: 0 pose, 1 depth, 2 soft edges, 3 canny, 4 normals, 5 "
        "segmentation, and in newer networks 6 tiles, 7 repainting. With several ControlNets, a list with an entry for "
        "each: a number, a list, or None for a usual ControlNet.",
        default=None,
        option=list[int],
        key="control_modes",
        read=json.loads,
    )
    controlnet_conditioning_scale: OneOrMore = argument(
        "Strength of each ControlNet, 0 to 10, or one for all; of a ControlNet-Union, of each control image.",
        default=1.0,
        option=list[float],
        key="control_scales",
        read=numbers_from,
    )
    control_guidance_start: OneOrMore = argument(
        "Fraction of the U-Net calls at which each ControlNet starts, or one for all.",
        default=0.0,
        option=list[float],
        key="control_starts",
        read=numbers_from,
    )
    control_guidance_end: OneOrMore = argument(
        "Fraction of the U-Net calls at which each ControlNet stops, or one for all.",
        default=1.0,
        option=list[float],
        key="control_ends",
        read=numbers_from,
    )
    adapter_image: Images = argument(
        "An input image for each T2I-Adapter: edges, a sketch, depth, a pose.",
        "For each T2I-Adapter one image, or one for each prompt, in the types of `image`; an adapter of one channel "
        "gets it in gray. None turns the T2I-Adapters off. The networks see each image once, not at every step.",
        default=None,
        option=list[Path],
    )
    adapter_conditioning_scale: OneOrMore = argument(
        "Strength of each T2I-Adapter, 0 to 10, or one for all.",
        default=1.0,
        option=list[float],
        key="adapter_scales",
        read=numbers_from,
    )
    adapter_conditioning_factor: float = argument(
        "Fraction of the U-Net calls, from the first one on, in which the T2I-Adapters have an effect, 0 to 1.",
        default=1.0,
        option=float,
        key="adapter_factor",
        read=float,
    )
    ip_adapter_image: Any = argument(
        "Image prompt: an image for each IP-Adapter, or several.",
        "For each IP-Adapter one image, or a list of images that it sees together, in the types of `image`; None "
        "leaves an adapter out. With one adapter, one image or a list of images.",
        default=None,
        option=list[Path],
    )
    ip_adapter_image_embeds: Any = argument(
        "Embeddings of image prompts, in place of `ip_adapter_image`: an array for each IP-Adapter.",
        "[2, images, ...] under guidance, the unconditional half first, else [1, images, ...], as diffusers takes "
        "them: of the image encoder, or for FaceID of a face recognition model.",
        default=None,
    )
    ip_adapter_mask: Any = argument(
        "Areas in which image prompts count: for each IP-Adapter a mask for each of its images, white counts.",
        "In the types of `mask_image`, or float arrays [H, W]; they are resized to the output size. An image with "
        "a mask is seen by itself, images without are seen together.",
        default=None,
        option=list[Path],
    )
    ip_adapter_scale: Any = argument(
        "Strength of each IP-Adapter, or one for all: a number, or numbers by block.",
        'By block as in diffusers (InstantStyle): {"down": {"block_2": [0, 1]}, "up": {"block_0": [0, 1, 0]}} has a '
        "number for each attention of a block; what it leaves out is 0. Or a list with a number for each of the "
        "U-Net's cross-attentions, or with masks for each image. -10 to 10. A command line takes JSON.",
        default=1.0,
        option=str,
        key="ip_adapter_scale",
        read=json.loads,
    )
