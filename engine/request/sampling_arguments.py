"""The arguments of a call that choose its noise, its steps, its scheduler and its guidance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .argument import argument, numbers_from

if TYPE_CHECKING:  # the command line reads this table, and imports no schedulers for it
    from ..sampling.schedulers import SchedulerLike

CallsFrom = Literal["fit", "forecast"]


@dataclass(frozen=True, kw_only=True)
class SamplingArguments:
    """Noise, steps and guidance. Each field has its text."""

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
    scheduler: SchedulerLike = argument(
        "For example dpm++2m-karras or euler.",
        "A name, a diffusers scheduler or its class; None is the model's scheduler.",
        default=None,
        option=str,
        shown_default="the model's",
    )
