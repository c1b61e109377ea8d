"""The arguments of a call that choose its noise, its steps, its scheduler and its guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from .argument import ArrayLike, argument, numbers_from

if TYPE_CHECKING:  # the command line reads this table, and imports no schedulers for it
    from ...sampling.schedulers import SchedulerLike

CallsFrom = Literal["fit", "forecast"]
GuidanceMethod = Literal["cfg", "apg", "cfg-zero"]
GeneratorLike: TypeAlias = Any  # torch.Generator, or a list of these


@dataclass(frozen=True, kw_only=True)
class SamplingArguments:
    """Noise, steps and guidance. Each field has its text."""

    steps: int = argument(
        "Denoising steps.", "1 to 1000.", default=20, option=int, key="steps", read=int, required=True
    )
    timesteps: Sequence[float] | None = argument(
        "The timesteps of the U-Net calls, in place of `steps`.",
        "Descending, as the scheduler's training counts them: 999 to 0. The scheduler must take them: euler, lcm, tcd, "
        "heun, ddpm and dpm++2m do.",
        default=None,
        option=list[float],
        key="timesteps",
        read=numbers_from,
    )
    sigmas: Sequence[float] | None = argument(
        "The noise levels of the steps, in place of `steps`; the last one is 0.",
        "Descending, such as those of Align Your Steps. The scheduler must take them: euler does.",
        default=None,
        option=list[float],
        key="sigmas",
        read=numbers_from,
    )
    eta: float = argument(
        "Noise that ddim and tcd add again at each step, 0 to 1.",
        "The eta of DDIM (arXiv 2010.02502); tcd names it gamma. Other schedulers have none, and a note says so.",
        default=0.0,
        option=float,
        key="eta",
        read=float,
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
    guidance_method: GuidanceMethod = argument(
        "cfg, apg or cfg-zero: how guidance combines the outputs with and without the prompt.",
        "Besides classifier-free guidance: adaptive projected guidance (Sadat et al. 2024, arXiv 2410.02416), against "
        "saturated colors at a high scale; and CFG-Zero* (Fan et al. 2025, arXiv 2503.18886) without its zeroed steps, "
        "which are meant for flow models.",
        default="cfg",
        option=str,
        key="guidance_method",
    )
    apg_eta: float = argument(
        "The share of apg's guidance along the output with the prompt that stays, 0 to 1.",
        default=0.0,
        option=float,
        key="apg_eta",
        read=float,
    )
    apg_momentum: float = argument(
        "The share of the earlier guidance that apg adds, -1 to 1.",
        default=-0.5,
        option=float,
        key="apg_momentum",
        read=float,
    )
    apg_rescale: float = argument(
        "The largest norm of apg's guidance; 0 is no limit.",
        "0 to 10,000. The L2 norm over an image's latents, which grows with the size of the image.",
        default=15.0,
        option=float,
        key="apg_rescale",
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
    generator: GeneratorLike = argument(
        "A torch.Generator, or a list with one for each image, in place of `seed`.",
        "The noise is drawn from it as diffusers draws it: one generator serves the batch as a whole, so an image "
        "depends on the others. Its state advances. `Result.seeds` has its initial seed.",
        default=None,
    )
    latents: ArrayLike = argument(
        "The initial noise, in place of the noise of `seed` or `generator`.",
        "Standard-normal numbers [N, C, h, w], as an array or a torch tensor: one for all images, or one for each. "
        "Without width and height, they decide the size.",
        default=None,
    )
    lora_scale: float = argument(
        "A factor on the weights of all active LoRAs, 0 to 10.",
        "For this call; the next call with another one changes the weights again.",
        default=1.0,
        option=float,
    )
    callback_on_step_end: Callable[..., Any] | None = argument(
        "A function that runs after each step, as diffusers calls it.",
        "It gets the pipeline, the step, the timestep and a dict of tensors, and returns a dict with those to change. "
        '`{"interrupt": True}` in it, or `pipe._interrupt = True`, ends the steps and decodes the latents as they are.',
        default=None,
    )
    callback_on_step_end_tensor_inputs: Sequence[str] = argument(
        "The tensors that `callback_on_step_end` gets, of torch.",
        "`latents` [N, C, h, w] and `prompt_embeds`, under guidance the negative half first; also "
        "`negative_prompt_embeds`, and of SDXL `add_text_embeds` and `add_time_ids`.",
        default=("latents",),
    )
    scheduler: SchedulerLike = argument(
        "For example dpm++2m-karras or euler.",
        "A name, a diffusers scheduler or its class; None is the model's scheduler.",
        default=None,
        option=str,
        shown_default="the model's",
    )
