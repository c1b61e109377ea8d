"""Metadata of a generated image: the settings in its PNG, which `--like` reads, and the report of the call."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ..backends import LoadedComponent
from ..backends.compatibility import version_drift_note
from ..images.png import CHUNK
from ..lora.lora import Lora
from ..plan.plan import Plan
from ..request.request import Job
from ..sampling.matrix import Sampler
from ..sampling.schedulers import SchedulerSpec
from ..stages.vae import VaeTiling
from ..system.version import __version__
from .report import ComponentReport, Report


@dataclass(frozen=True, kw_only=True)
class ResolvedCall:
    """A job with its scheduler, sampler, VAE tiling and LoRAs."""

    job: Job
    spec: SchedulerSpec
    sampler: Sampler
    tiling: VaeTiling
    loras: tuple[Lora, ...] = ()


def png_metadata(plan: Plan, work: ResolvedCall, i: int, backend: str) -> dict[str, str]:
    """Return the settings for the PNG of image i, enough to generate it again. `backend` is the U-Net's."""
    job, spec = work.job, work.spec
    negative = job.negative_prompts[i]
    return {
        CHUNK: __version__,
        "prompt": job.prompts[i],
        **({} if negative is None else {"negative_prompt": negative}),
        "seed": str(job.seeds[i]),
        "steps": str(job.steps),
        "guidance_scale": repr(job.guidance_scale),
        **({"guidance_rescale": repr(job.guidance_rescale)} if job.guidance_rescale else {}),
        **({"guidance_interval": json.dumps(job.guidance_interval)} if job.guidance_interval != (0, 1) else {}),
        **({"cache_interval": str(job.cache_interval)} if job.cache_interval > 1 else {}),
        **({"clip_skip": str(job.clip_skip)} if job.clip_skip else {}),
        "sampler": spec.name,
        "scheduler": spec.to_json(),
        "width": str(job.width),
        "height": str(job.height),
        **({} if job.task.strength is None else {"strength": repr(job.task.strength)}),
        **({"masked": "yes"} if job.task.inpaint_mask is not None else {}),
        **{f"denoising_{n}": repr(at) for n, at in job.task.schedule_range.handoff.items()},
        **_control_metadata(job),
        **({"loras": json.dumps([[str(x.path), x.weight, x.digest] for x in work.loras])} if work.loras else {}),
        "model": plan.model,
        "model_fingerprint": plan.fingerprint,
        "backend": backend,
    }


def build_report(
    plan: Plan,
    work: ResolvedCall,
    opened: Iterable[LoadedComponent],
    seconds: Mapping[str, float],
    notes: Iterable[str],
) -> Report:
    """Return the report of a call; `notes` are those of its stages."""
    opened, sampler = tuple(opened), work.sampler
    return Report(
        model=plan.model,
        model_id=plan.model_id,
        components=tuple(map(_component_report, opened)),
        sampler=sampler.name,
        steps=work.job.steps,
        network_calls=sampler.calls,
        seconds=dict(seconds),
        loras=tuple((str(lora.path), lora.weight) for lora in work.loras),
        notes=(*work.job.notes, *_approximations(work.job), *_notes(plan, work, opened, notes)),
    )


def _notes(plan: Plan, work: ResolvedCall, opened: Iterable[LoadedComponent], notes: Iterable[str]) -> Iterator[str]:
    if work.tiling.note:
        yield work.tiling.note
    yield from notes
    for component in opened:
        yield from component.retried
        yield from getattr(component.runner, "notes", ())
    if (older := version_drift_note(plan)) is not None:
        yield older
    if work.sampler.reason:
        yield f"the scheduler's own code ran, not a sampler matrix: {work.sampler.reason}"


def _approximations(job: Job) -> Iterator[str]:
    """Yield a note for each setting that approximates the result."""
    if job.cache_interval > 1:
        yield f"U-Net deep features were recomputed once in {job.cache_interval} calls (cache_interval)"
    if job.guided and job.guidance_interval != (0, 1):
        start, end = job.guidance_interval
        yield f"guidance ran from {start:g} to {end:g} of the U-Net calls only (guidance_interval)"


def _control_metadata(job: Job) -> dict[str, str]:
    if not job.control_images:
        return {}
    starts, ends = zip(*job.control_spans, strict=True)
    values = {"control_scales": job.control_scales, "control_starts": starts, "control_ends": ends}
    return {name: json.dumps(numbers) for name, numbers in values.items()}


def _component_report(opened: LoadedComponent) -> ComponentReport:
    check, backend = opened.artifact.check, opened.runner.backend
    checked = check.get("backend", "onnxruntime") == backend  # a check of another backend does not apply to this one
    return ComponentReport(
        name=opened.component.name,
        backend=backend,
        precision=opened.runner.precision,
        why=opened.why,
        error=check.get("max_relative_error") if checked else None,
    )
