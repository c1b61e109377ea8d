"""Metadata of a generated image: the settings in its file, which `--like` reads, and the report of the call."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backends import LoadedComponent
from ..images.png import CHUNK, PARAMETERS, GeneratedImage, image_from_pixels
from ..images.video import Video
from ..plan.plan import Plan
from ..request.arguments.argument import to_settings
from ..request.request import Request
from ..request.resolved import ResolvedRequest
from ..request.video.clip import ClipSettings
from ..stages.generation import Generation
from ..system.version import __version__
from .infotext import infotext_of
from .report import ComponentReport, PassReport, Report
from .result import Result


def build_result(plan: Plan, call: Generation, output: NDArray[Any], opened: Sequence[LoadedComponent]) -> Result:
    """Return the result of a call on these components. `output` is what it returns; bytes become images."""
    report = _build_report(plan, call, opened)
    images: Any = to_images(plan, call, output, opened) if output.dtype == np.uint8 else output
    videos = () if call.request.clip is None else _videos(call.request.clip, call.request.output_type, images)
    if call.request.output_type == "pt":
        import torch

        images = torch.from_numpy(np.ascontiguousarray(np.moveaxis(output, -1, -3)))
    return Result(images=images, seeds=call.request.seeds, report=report, videos=videos)


def _videos(clip: ClipSettings, output_type: str, images: Any) -> tuple[Video, ...]:
    """Return the clips of a call, from its frames in one list or from arrays in [0, 1]; none from latents."""
    if output_type == "latent":
        return ()
    if output_type != "pil":
        pixels = np.rint(images * 255).astype(np.uint8)  # [N, F, H, W, 3]
        images = [image_from_pixels(each, {}) for each in pixels.reshape(-1, *pixels.shape[2:])]
    starts = range(0, len(images), clip.frames)
    return tuple(Video(frames=tuple(images[i : i + clip.frames]), fps=clip.fps) for i in starts)


def to_images(
    plan: Plan, call: Generation, pixels: NDArray[np.uint8], opened: Sequence[LoadedComponent]
) -> list[GeneratedImage]:
    """Return the images of a call, or the frames of its clips, each with the settings that generate it again.

    # [B, H, W, 3], or [B, F, H, W, 3]
    """
    frames = 1 if call.request.clip is None else call.request.clip.frames
    pixels = pixels.reshape(-1, *pixels.shape[-3:])
    backend = next((each.runner.backend for each in opened if each.component.name == "unet"), "")
    ran = {"backend": backend, "precision": _precisions(opened)}
    crop = call.request.mask_crop
    full = pixels if crop is None else [crop.overlay(image) for image in pixels]
    return [image_from_pixels(image, _settings(plan, call, i // frames) | ran) for i, image in enumerate(full)]


def _settings(plan: Plan, call: Generation, i: int) -> dict[str, str]:
    loras = [[str(lora.path), lora.weight, lora.digest] for lora in call.loras]
    return {
        PARAMETERS: infotext_of(call, i, plan.model),
        CHUNK: __version__,
        **to_settings(Request, call.request.arguments(i) | {"calls": call.calls}),
        "sampler": call.sampler.name,
        "scheduler": call.spec.to_json(),
        **({"masked": "yes"} if call.request.inpaint_mask is not None else {}),
        **({} if call.upscaler is None else {"hires_upscaler_digest": call.upscaler.digest}),
        **({"unstored": ", ".join(call.request.unstored)} if call.request.unstored else {}),
        **({"loras": json.dumps(loras)} if loras else {}),
        "model": plan.model,
        "model_fingerprint": plan.fingerprint,
    }


def _precisions(opened: Sequence[LoadedComponent]) -> str:
    """Return the precision of all components, or of each: "unet=bf16,vae_decoder=fp32"."""
    each = {component.component.name: component.runner.precision.partition("+")[0] for component in opened}
    if len(set(each.values())) == 1:
        return next(iter(each.values()))
    return ",".join(f"{name}={precision}" for name, precision in each.items())


def _build_report(plan: Plan, call: Generation, opened: Sequence[LoadedComponent]) -> Report:
    return Report(
        model=plan.model,
        model_id=plan.model_id,
        components=tuple(map(_component_report, opened)),
        sampler=call.sampler.name,
        steps=call.request.steps,
        network_calls=call.total,
        seconds=dict(call.watch.seconds) | _second_seconds(call),
        passes=tuple(map(_pass, call.passes)) if call.second else (),
        loras=tuple((str(lora.path), lora.weight) for lora in call.loras),
        notes=tuple(dict.fromkeys([*call.request.notes, *_approximations(call.request), *_notes(call, opened)])),
    )


def _pass(call: Generation) -> PassReport:
    return PassReport(width=call.request.width, height=call.request.height, network_calls=call.sampler.calls)


def _second_seconds(call: Generation) -> dict[str, float]:
    return {f"hires {stage}": spent for each in call.passes[1:] for stage, spent in each.watch.seconds.items()}


def _notes(call: Generation, opened: Sequence[LoadedComponent]) -> Iterator[str]:
    yield from call.notes
    for component in opened:
        yield from component.retried
        yield from component.runner.notes
    if call.sampler.reason:
        yield f"the scheduler's own code ran, not a sampler matrix: {call.sampler.reason}"


def _approximations(request: ResolvedRequest) -> Iterator[str]:
    """Yield a note for each setting that approximates the result."""
    if request.cache_interval > 1:
        yield f"U-Net deep features were recomputed once in {request.cache_interval} calls (cache_interval)"
    if request.guided and request.guidance_interval != (0, 1):
        start, end = request.guidance_interval
        yield f"guidance ran from {start:g} to {end:g} of the U-Net calls only (guidance_interval)"


def _component_report(opened: LoadedComponent) -> ComponentReport:
    check, backend = opened.artifact.check, opened.runner.backend
    checked = check.get("backend", "onnxruntime") == backend  # a check of another backend does not apply to this one
    return ComponentReport(
        name=opened.component.name,
        backend=backend,
        precision=opened.runner.precision,
        why=opened.why,
        precision_reason=opened.precision_reason,
        error=check.get("max_relative_error") if checked else None,
    )
