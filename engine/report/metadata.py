"""What is told of a picture: in its PNG, enough to make it again; in the report, how it came about.

Knows a job with all that was decided for it, and who ran the components; makes nothing.
"""

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
    """One call, with nothing left to decide."""

    job: Job
    spec: SchedulerSpec
    sampler: Sampler
    tiling: VaeTiling
    loras: tuple[Lora, ...] = ()


def png_metadata(plan: Plan, work: ResolvedCall, i: int, backend: str) -> dict[str, str]:
    """What picture i's PNG says of itself: enough to make it again. `backend` is the U-Net's."""
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
        **_of_controls(job),
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
    """How a result came about; `notes` are what the work itself had to say."""
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
        yield f"the scheduler itself runs, not a sampler matrix: {work.sampler.reason}"


def _approximations(job: Job) -> Iterator[str]:
    """What makes another picture than the whole work would, in words for the report."""
    if job.cache_interval > 1:
        yield f"the U-Net's deep layers were computed at every {job.cache_interval}. call alone (cache_interval)"
    if job.guided and job.guidance_interval != (0, 1):
        start, end = job.guidance_interval
        yield f"guidance from {start:g} to {end:g} of the U-Net's calls alone (guidance_interval)"


def _of_controls(job: Job) -> dict[str, str]:
    """What a PNG says of its ControlNets; nothing where none had a part."""
    if not job.control_images:
        return {}
    said = {"control_scales": job.control_scales}
    said |= {f"control_{end}s": tuple(span[i] for span in job.control_spans) for i, end in enumerate(("start", "end"))}
    return {name: json.dumps(values) for name, values in said.items()}


def _component_report(opened: LoadedComponent) -> ComponentReport:
    check, backend = opened.artifact.check, opened.runner.backend
    checked = check.get("backend", "onnxruntime") == backend  # what another backend made of it says nothing of this one
    return ComponentReport(
        name=opened.component.name,
        backend=backend,
        precision=opened.runner.precision,
        why=opened.why,
        error=check.get("max_relative_error") if checked else None,
    )
