"""`Request`: the arguments of a call, with their defaults. `resolve` checks them against a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors.validation import check_names
from .argument import argument, numbers_from

if TYPE_CHECKING:  # the command line reads this table, and imports neither numpy nor PIL for it
    from ..images.arrays import Images
    from ..sampling.schedulers import SchedulerLike

OutputType = Literal["pil", "np", "latent"]
CallsFrom = Literal["fit", "forecast"]
OneOrMore = float | Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Request:
    """Arguments of one call, as the caller passed them. The reference page lists them; each field has its text."""

    prompt: str | Sequence[str] | None = argument(
        "Text that describes the image.",
        "One prompt, or a list. The empty prompt is allowed. `(words:1.3)` weighs the words 1.3 times; a weight is "
        "from 0 to 10. A long prompt goes through the text encoder in chunks of its length (75 tokens). At most "
        "100,000 characters. An unconditional model takes none.",
        default=None,
        key="prompt",
        required=True,
    )
    negative_prompt: str | Sequence[str] | None = argument(
        "Text that describes what to avoid.",
        "One for all prompts or one for each; needs guidance_scale > 1.",
        default=None,
        option=str,
        key="negative_prompt",
    )
    steps: int = argument(
        "Denoising steps.", "1 to 1000.", default=20, option=int, key="steps", read=int, required=True
    )
    calls: int | None = argument(
        "Network calls in place of one for each step, by a sampler that was fitted to the model.",
        "From 1 to the calls of `steps`; `calotype fit` makes the sampler. Image-to-image makes its share of them. It "
        "changes the image a little.",
        default=None,
        option=int,
        shown_default="all",
        key="calls",
        read=int,
    )
    calls_from: CallsFrom = argument(
        '"fit", or "forecast": extrapolate the outputs of the calls left out, without a fit.',
        default="fit",
        option=str,
        key="calls_from",
    )
    min_psnr: float | None = argument(
        "Use the fewest calls whose fitted sampler kept nine of ten held-out images within this many dB.",
        "0 to 100, PSNR to the image of all calls; in place of `calls`.",
        default=None,
        option=float,
    )
    guidance_scale: float = argument(
        "Strength of the prompt; 1 turns guidance off.",
        "0 to 100. A value of 1 or less halves the work.",
        default=5.0,
        option=float,
        key="guidance_scale",
        read=float,
        required=True,
    )
    guidance_rescale: float = argument(
        "Correction of overexposure by guidance, 0 to 1.",
        "The part of the contrast that guidance adds, which is removed. Models with a zero terminal signal overexpose "
        "without it (use 0.7).",
        default=0.0,
        option=float,
        key="guidance_rescale",
        read=float,
    )
    guidance_interval: tuple[float, float] = argument(
        "Start and end of guidance, as fractions of the U-Net calls.",
        "0 to 1. Calls outside cost half (Kynkaanniemi et al. 2024, arXiv 2404.07724). It changes the image.",
        default=(0.0, 1.0),
        option=tuple[float, float],
        key="guidance_interval",
        read=numbers_from,
    )
    cache_interval: int = argument(
        "Compute the deep U-Net layers once in this many calls.",
        "1 or more (DeepCache, arXiv 2312.00858); needs the openvino backend. A value above 1 changes the image.",
        default=1,
        option=int,
        key="cache_interval",
        read=int,
    )
    clip_skip: int | None = argument(
        "Number of last text encoder layers to skip.",
        "1 or more; None skips none. As in diffusers, it applies to the prompt only, not to the negative prompt.",
        default=None,
        option=int,
        key="clip_skip",
        read=int,
    )
    seed: int | Sequence[int] | None = argument(
        "The same seed gives the same image.",
        "One number, where image i uses seed + i, or one number for each image. 0 to 2^64 - 1, as in ComfyUI; as in "
        "PyTorch, the noise depends on the low 32 bits.",
        default=None,
        option=int,
        shown_default="random",
        key="seed",
        read=int,
        required=True,
    )
    width: int | None = argument(
        "Width in pixels.",
        "The default is the width of `image`, or else of `control_image`, rounded down to the model's multiple; "
        "without both, the model's.",
        default=None,
        option=int,
        shown_default="the model's",
        key="width",
        read=int,
        required=True,
    )
    height: int | None = argument(
        "Height in pixels.",
        "The default is chosen as that of `width`.",
        default=None,
        option=int,
        shown_default="the model's",
        key="height",
        read=int,
        required=True,
    )
    num_images: int = argument("Images to generate for each prompt; image i uses seed + i.", default=1, option=int)
    image: Images = argument(
        "Input of image-to-image and inpainting.",
        "One, or one for each prompt: files, PIL images, arrays [H, W, 3] or torch tensors [3, H, W] or [B, 3, H, W], "
        "of bytes or of floats in [0, 1], which are resized to the output size. Or latents [N, C, h, w] from "
        'output_type="latent": one, one for each prompt, or one for each image.',
        default=None,
        option=Path,
    )
    mask_image: Images = argument(
        "Inpainting mask: white is repainted, black is kept.",
        "One, or one for each prompt, in the types of `image`.",
        default=None,
        option=Path,
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
    controlnet_conditioning_scale: OneOrMore = argument(
        "Strength of each ControlNet, 0 to 10, or one for all.",
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
    scheduler: SchedulerLike = argument(
        "For example dpm++2m-karras or euler.",
        "A name, a diffusers scheduler or its class; None is the model's scheduler.",
        default=None,
        option=str,
        shown_default="the model's",
    )
    output_type: OutputType = argument(
        '"pil" for PIL images, "np" for float32 [N, H, W, 3] in [0, 1], "latent" for float32 [N, C, h, w].',
        default="pil",
    )


_DIFFUSERS_NAMES = {"num_inference_steps": "steps", "num_images_per_prompt": "num_images", "generator": "seed"}
_HINTS = {theirs: f"The nearest: {ours}." for theirs, ours in _DIFFUSERS_NAMES.items()}


def parse_request(prompt: Any, arguments: Mapping[str, Any]) -> Request:
    """Return the request of a call's arguments. Raises `InputError` with the nearest name for an unknown argument."""
    check_names(arguments, [field.name for field in fields(Request)], _HINTS)
    return Request(prompt=prompt, **arguments)
