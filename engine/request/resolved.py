"""`ResolvedRequest`: the arguments of a call, checked against a plan, with every default filled in."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..errors.validation import check_bool, check_float, check_int
from ..images.mask_crop import MaskCrop
from ..plan.plan import Plan, skipping
from ..sampling.matrix import InpaintMask
from ..sampling.schedule_range import ScheduleRange
from ..sampling.schedulers import SchedulerLike
from .arguments.perturbed import PerturbedArguments
from .arguments.regions import RegionArguments
from .arguments.sampling import GuidanceMethod
from .arguments.style import StyleArguments
from .callback import check_callback
from .conditioning import PrecomputedStates, SizeConditioning, check_counts, precomputed_states, sizes_of
from .conditions import image_guidance_of
from .controls import AdapterInput, ControlInput, modes_of
from .guidance import guidance_method_of
from .hires import Hires
from .image_fields import image_fields, is_distilled
from .image_prompts.perturbed import PerturbedGuidance, perturbed_of
from .image_prompts.prompts import ImagePrompt, image_prompts_of
from .image_prompts.scales import plain_scale
from .image_prompts.style import Style, style_of
from .noise_and_steps import MAX_STEPS, generators_of, is_seed_only, seeds_of, steps_of
from .prompts import Tokenizers, TokensByEncoder, repeated, texts_of, tokenize_with
from .regions.regions import Regions, regions_of
from .request import CallsFrom, OutputType, Request, parse_request
from .video.clip import ClipSettings, ImageClip, check_no_text_guidance, clip_of, input_clip

Floats = NDArray[np.float32]
MAX_IMAGES = 1000  # of a call


@dataclass(frozen=True, kw_only=True, eq=False)
class ResolvedRequest:
    """A request resolved against a plan: every value is set, with a prompt, negative prompt and seed for each image."""

    prompts: tuple[str, ...]
    negative_prompts: tuple[str | None, ...]  # None: zeros in place of text
    tokens: TokensByEncoder  # [N, ...]: the negative prompts if guided, those of regions, the prompts
    precomputed: PrecomputedStates  # of B images, in place of tokens
    prompts_2: tuple[str, ...]
    regions: Regions | None  # areas with a prompt of their own
    negative_prompts_2: tuple[str | None, ...]
    sizes: SizeConditioning | None  # of SDXL
    seeds: tuple[int, ...]
    generators: tuple[Any, ...]  # of torch, in place of the seeds: none, one for the batch, or one for each image
    noise: Floats | None  # [B, C, h, w], if the request passes the initial noise
    steps: int
    calls: int | None
    calls_from: CallsFrom
    min_psnr: float | None
    guidance_scale: float
    guided: bool  # whether the network also runs without the prompt
    image_guidance_scale: float | None  # of a model that edits by instructions
    guidance_rescale: float
    guidance_method: GuidanceMethod
    apg_eta: float
    apg_momentum: float
    apg_rescale: float
    guidance_interval: tuple[float, float]
    cache_interval: int
    clip_skip: int | None
    width: int
    height: int
    scheduler: SchedulerLike
    output_type: OutputType
    image: Floats | None  # [1 or one for each prompt, 3, H, W] in [0, 1]; [B, 3, h, w], small, for an upscaler
    video: Floats | None  # [1, F, 3, H, W] in [0, 1], an input clip
    image_latents: Floats | None  # [B, C, h, w], if the request passes latents as the image
    inpaint_mask: InpaintMask | None  # [1 or one for each prompt, 1, H, W]
    soft_mask: bool
    depth: Floats | None  # [B, 1, h, w] from -1 to 1, if the request passes a depth map
    vision: Floats | None  # [B, 3, S, S], normalized, for a vision encoder
    noise_level: int | None  # of an upscaler's small image
    clip: ClipSettings | None  # of a model that makes clips
    sources: int  # different input images, or prompts, of clips
    strength: float | None
    schedule_range: ScheduleRange
    controls: tuple[ControlInput, ...]  # one for each ControlNet, or none
    adapters: tuple[AdapterInput, ...]  # one for each T2I-Adapter, or none
    image_prompts: tuple[ImagePrompt, ...]  # one for each IP-Adapter, or none
    ip_adapter_scale: Any  # as the call has it: a number, a mapping, or a list of these
    style: Style | None  # that all images share
    perturbed: PerturbedGuidance | None  # guidance away from an output without self-attention
    hires: Hires | None  # the second pass
    progress: bool
    padding_mask_crop: int | None
    mask_crop: MaskCrop | None  # the area around the mask, if only this is generated
    unstored: tuple[str, ...]  # arguments without which a PNG's settings do not give its image again
    lora_scale: float
    callback: Callable[..., Any] | None
    callback_tensors: tuple[str, ...]
    notes: tuple[str, ...]  # for the report: changes of the input images, text without effect

    @property
    def rows(self) -> int:
        """The rows of the U-Net for each image: without the prompt, without self-attention, and those of texts."""
        return self.unprompted_rows + (self.perturbed is not None) + self.text_rows

    @property
    def text_rows(self) -> int:
        """The rows of the U-Net for each image with a text of their own."""
        return 1 if self.regions is None else 1 + len(self.regions.prompts)

    @property
    def unprompted_rows(self) -> int:
        """The rows of the U-Net for each image that guidance compares with."""
        return (1 if self.image_guidance_scale is None else 2) if self.guided else 0

    def arguments(self, i: int) -> dict[str, Any]:
        """Return the values of the arguments that generate image i again, by their names in `Request`."""
        values = {**vars(self), "prompt": self.prompts[i], "negative_prompt": self.negative_prompts[i]}
        seconds = {"prompt_2": self.prompts_2[i], "negative_prompt_2": self.negative_prompts_2[i]}
        values |= {name: text for name, text in seconds.items() if text != values[name.removesuffix("_2")]}
        values |= {} if self.sizes is None else vars(self.sizes)
        values |= {} if self.clip is None else vars(self.clip)
        values |= {"guidance_scale": Request.guidance_scale} if isinstance(self.clip, ImageClip) else {}
        values |= {"seed": self.seeds[i], "denoising_start": self.schedule_range.begin}
        values["denoising_end"] = self.schedule_range.end
        values |= {"timesteps": self.schedule_range.timesteps, "sigmas": self.schedule_range.sigmas}
        values["eta"] = self.schedule_range.eta
        if self.controls:
            values["controlnet_conditioning_scale"] = [each.scale for each in self.controls]
            values["control_guidance_start"] = [each.start for each in self.controls]
            values["control_guidance_end"] = [each.end for each in self.controls]
        if any(each.mode is not None for each in self.controls):
            values["control_mode"] = modes_of(self.controls)
        if self.adapters:
            values["adapter_conditioning_scale"] = [each.scale for each in self.adapters]
            values["adapter_conditioning_factor"] = self.adapters[0].factor
        if self.perturbed is not None:
            values |= {"pag_scale": self.perturbed.scale, "pag_adaptive_scale": self.perturbed.adaptive_scale}
            values["pag_applied_layers"] = list(self.perturbed.layers)
        if self.regions is not None:
            values |= {"region_prompts": list(self.regions.prompts), "region_strength": self.regions.strength}
        if (hires := self.hires) is not None:
            values |= {"hires": hires.factor, "hires_strength": hires.strength, "hires_steps": hires.steps}
            values["hires_upscaler"] = str(hires.upscaler)
        return values

    def second_pass(self) -> ResolvedRequest:
        """Return the request of the second pass of `hires`. Its image, or latents, are those of the first pass."""
        hires = self.hires
        assert hires is not None
        return replace(
            self,
            width=hires.width,
            height=hires.height,
            steps=hires.schedule_steps,
            schedule_range=replace(hires.schedule_range, eta=self.schedule_range.eta),
            strength=hires.strength,
            controls=hires.controls,
            adapters=hires.adapters,
            calls=None,
            min_psnr=None,
            image=None,
            image_latents=None,
            noise=None,
            hires=None,
        )


def resolve(prompt: Any, arguments: Mapping[str, Any], plan: Plan, tokenizers: Tokenizers) -> ResolvedRequest:
    """Check all arguments of a call that can be checked before the work, and fill in the defaults.

    Args:
        prompt: the prompt, or a list.
        arguments: other arguments, by their names in `Request`.
        plan: the model's plan.
        tokenizers: the tokenizer of each text encoder.

    Raises:
        InputError: an argument is unknown or wrong.
    """
    request = parse_request(*_image_in_place(prompt, arguments, plan))
    video = [] if request.video is None else input_clip(plan, request)
    clip = clip_of(plan, request, len(video)) if plan.makes_clips else None
    _check_output_type(request.output_type)
    notes: list[str] = []
    precomputed, sizes = precomputed_states(request, plan), sizes_of(request, plan)
    texts = texts_of(request, plan, precomputed)
    prompts = len(texts["prompts"])
    check_counts(precomputed, prompts)
    each = check_int("num_images", request.num_images, 1, MAX_IMAGES)
    (steps, custom), count = steps_of(request), each * prompts
    if count > MAX_IMAGES:
        message = f"a call generates at most {MAX_IMAGES} images, got {count} ({prompts} prompts x {each})."
        raise InputError(message, argument="num_images", got=count, expected=f"at most {MAX_IMAGES}")
    generators = generators_of(request, count)
    seeds = seeds_of(request, generators, count)
    images = image_fields(request, plan, steps, prompts=prompts, count=count, notes=notes, clip=clip, video=video)
    if any(custom.values()):
        images["schedule_range"] = replace(images["schedule_range"], **custom)
    unstored = {"generator": generators and not is_seed_only(generators, count), "latents": images["noise"] is not None}
    texts, precomputed = repeated(texts, each), precomputed.repeated(each, count)
    unstored["prompt_embeds"] = bool(precomputed)
    unstored["ip_adapter_image_embeds"] = request.ip_adapter_image_embeds is not None
    _check_hires(request)
    regions = None
    if request.sets(RegionArguments):
        regions = regions_of(request, plan, height=images["height"], width=images["width"])
    scale = check_float("guidance_scale", request.guidance_scale, 100, " (1 or less: no guidance)")
    if isinstance(clip, ImageClip):
        check_no_text_guidance(scale, Request.guidance_scale, request.guidance_method)
        scale = clip.guidance_scale
    by_image = image_guidance_of(request, plan)
    guided = scale > 1 and _takes_guidance(plan)  # 1 or less skips the unconditional half, as in diffusers
    guided = guided and (by_image is None or by_image >= 1)
    prompted = {"images": request.ip_adapter_image, "embeds": request.ip_adapter_image_embeds}
    prompted |= {"masks": request.ip_adapter_mask, "scale": request.ip_adapter_scale}
    shared = {"aligned": request.style_aligned, "image": request.style_image, "prompt": request.style_prompt}
    style = None
    if request.sets(StyleArguments):
        style = style_of(plan, **shared, count=count, has_states=bool(precomputed))
    unstored["style_aligned"] = style is not None
    described = None if style is None or style.image is None else style.prompt
    more: dict[str, Any] = {"style_prompt": described, "guided": guided, "notes": notes, "regions": regions}
    tokens, of_style = tokenize_with(plan, tokenizers, texts, precomputed, **more)
    return ResolvedRequest(
        **texts,
        tokens=tokens,
        style=None if style is None else replace(style, tokens=of_style),
        precomputed=precomputed,
        regions=regions,
        perturbed=perturbed_of(request, plan) if request.sets(PerturbedArguments) else None,
        sizes=sizes,
        seeds=seeds,
        generators=generators,
        steps=steps,
        **_fewer_calls(request, steps),
        guidance_scale=scale,
        guided=guided,
        image_guidance_scale=by_image,
        guidance_rescale=check_float("guidance_rescale", request.guidance_rescale, 1),
        **guidance_method_of(request, by_image=by_image is not None),
        guidance_interval=_interval(request.guidance_interval),
        cache_interval=check_int("cache_interval", request.cache_interval, 1, MAX_STEPS),
        clip_skip=_clip_skip(request.clip_skip, plan),
        scheduler=request.scheduler,
        padding_mask_crop=request.padding_mask_crop,
        lora_scale=check_float("lora_scale", request.lora_scale, 10),
        callback=request.callback_on_step_end,
        callback_tensors=_callback_tensors(request, plan),
        output_type=request.output_type,
        clip=clip,
        sources=0 if clip is None else prompts,
        **images,
        image_prompts=image_prompts_of(plan, **prompted, guided=guided),
        ip_adapter_scale=plain_scale(request.ip_adapter_scale),
        unstored=tuple(name for name, is_unstored in unstored.items() if is_unstored),
        progress=check_bool("progress", request.progress),
        notes=tuple(notes),
    )


def _image_in_place(prompt: Any, arguments: Mapping[str, Any], plan: Plan) -> tuple[Any, Mapping[str, Any]]:
    """Return a call's prompt and arguments; the first argument of a video model is its image, as in diffusers."""
    if not plan.takes("video") or prompt is None or isinstance(prompt, str) or "image" in arguments:
        return prompt, arguments
    return None, {**arguments, "image": prompt}


def _takes_guidance(plan: Plan) -> bool:
    """Return whether guidance runs the U-Net twice."""
    return bool(plan.prompting.states or plan.sees) and not is_distilled(plan)


def _fewer_calls(request: Request, steps: int) -> dict[str, Any]:
    """Return the arguments that ask for fewer network calls than steps."""
    _check_choice("calls_from", request.calls_from, get_args(CallsFrom))
    if request.calls is not None and request.min_psnr is not None:
        message = "pass calls or min_psnr, not both: min_psnr chooses the number of calls."
        raise InputError(message, argument="min_psnr", got=request.min_psnr)
    if request.calls is None and request.calls_from == "forecast":
        raise InputError('calls_from="forecast" needs calls.', argument="calls_from", got=request.calls_from)
    calls = None if request.calls is None else check_int("calls", request.calls, 1, 2 * steps)
    psnr = None if request.min_psnr is None else check_float("min_psnr", request.min_psnr, 100)
    return {"calls": calls, "calls_from": request.calls_from, "min_psnr": psnr}


def _interval(interval: Sequence[float]) -> tuple[float, float]:
    if isinstance(interval, str) or not isinstance(interval, Sequence) or len(interval) != 2:
        raise InputError(
            f"guidance_interval must be two fractions, such as (0.1, 0.8); got {interval!r:.80}.",
            argument="guidance_interval",
            got=interval,
        )
    start, end = (check_float("guidance_interval", fraction, 1) for fraction in interval)
    if start >= end:
        raise InputError(
            f"guidance_interval must begin before it ends; got {interval!r:.80}.",
            argument="guidance_interval",
            got=interval,
        )
    return start, end


def _clip_skip(value: Any, plan: Plan) -> int | None:
    if value is None:
        return None
    if not plan.prompting.states:
        raise InputError(
            "clip_skip needs a text encoder, which this model lacks. Omit clip_skip.", argument="clip_skip", got=value
        )
    outputs = {name: {b.name for b in plan.components[name].outputs} for name, _ in plan.prompting.states}
    limit = 0
    while all(skipping(output, limit + 1) in outputs[name] for name, output in plan.prompting.states):
        limit += 1
    return check_int("clip_skip", value, 0, limit) or None


def _check_hires(request: Request) -> None:
    for name in ("callback_on_step_end", "padding_mask_crop"):
        if request.hires is not None and getattr(request, name) is not None:
            message = f"{name} cannot be combined with hires. Make the second pass with a second call."
            raise InputError(message, argument=name)


def _callback_tensors(request: Request, plan: Plan) -> tuple[str, ...]:
    if request.callback_on_step_end is None:
        return ()
    inputs = [b.name for b in plan.components["unet"].inputs]
    return check_callback(request.callback_on_step_end, request.callback_on_step_end_tensor_inputs, inputs)


def _check_output_type(value: Any) -> None:
    _check_choice("output_type", value, get_args(OutputType))
    if value == "pt" and importlib.util.find_spec("torch") is None:
        message = "output_type is pt, and torch is not installed. Use output_type='np', or pip install torch."
        raise InputError(message, argument="output_type", got=value)


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        message = f"{name} must be one of {', '.join(choices)}; got {value!r}."
        raise InputError(message, argument=name, got=value)
