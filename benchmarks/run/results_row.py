"""The row of a contender: medians, shares of the peak, quality. This module computes and measures nothing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..measure.correctness import QualityReference, quality
from ..measure.interval import quantile
from ..measure.record import ComponentTime, Quality, ResultRow, Speed
from ..suite.cases import Case
from .contender_process import BenchmarkCall, ContenderProcess, Sample

_OUTSIDE = ("text_encoder", "text_encoder_2", "vae_decoder")  # outside the loop over the steps


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The operations of an image (or batch) of the case. They are the same for every contender."""

    calls: int  # of the U-Net
    flops: Mapping[str, int]  # component -> all its calls; empty if they could not be counted


def result_row(
    case: Case, process: ContenderProcess, *, work: Workload, peaks: Mapping[str, float | None]
) -> ResultRow:
    """Return the row without ratios and quality. A contender that failed, or whose images are wrong, gets no speed."""
    status, reason = process.exclusion or ("ok", "")
    right = status == "ok" and bool(process.samples)
    answer: Mapping[str, Any] = process.load_report.answer if process.load_report else {}
    precisions = {**dict.fromkeys(work.flops, process.contender.precision), **answer.get("precisions", {})}
    return ResultRow(
        case=case.to_json(),
        case_id=case.id,
        contender=process.contender.name,
        maker=process.contender.maker,
        backend=process.contender.backend,
        precision=process.contender.precision,
        status=status,
        reason=reason,
        speed=speed_of(case, process.samples, work) if right else None,
        parts=parts_of([process.synchronized] if process.synchronized else process.samples, work, peaks, precisions)
        if right
        else {},
        flops=sum(work.flops.values()) or None,
        utilisation=_utilization(process.samples, work, peaks, precisions) if right else None,
        load_s=answer.get("load_s"),
        build_s=process.built.seconds if process.built else answer.get("build_s"),
        build_when=process.built.when if process.built else answer.get("build_when", ""),
        first_s=process.load_report.first_s if process.load_report and right else None,
        host_peak_bytes=process.host_peak_bytes,
        device_peak_bytes=process.device_peak_bytes,
        artifact_bytes=answer.get("artifact_bytes"),
        energy_j=_median([s.energy_j for s in process.samples]) if right else None,
        clock_mhz=_median([s.clock_mhz for s in process.samples]),
        disturbed_rounds=sum(s.disturbed for s in process.samples),
        threads=answer.get("threads"),
        versions=answer.get("versions", {}),
        notes=tuple(answer.get("notes", ())),
    )


def speed_of(case: Case, samples: Sequence[Sample], work: Workload) -> Speed:
    """Return the medians of the rounds."""
    seconds = [s.seconds for s in samples]
    median = statistics.median(seconds)
    looped = [_in_loop(s) for s in samples if s.parts]
    return Speed(
        samples_s=tuple(seconds),
        median_s=median,
        p10_s=quantile(seconds, 0.1),
        p90_s=quantile(seconds, 0.9),
        images_per_s=case.batch / median,
        it_per_s=work.calls / statistics.median(looped) if looped else None,
    )


def _in_loop(sample: Sample) -> float:
    return sample.seconds - sum(sum(calls) for name, calls in sample.parts.items() if name in _OUTSIDE)


def parts_of(
    samples: Sequence[Sample],
    work: Workload,
    peaks: Mapping[str, float | None],
    precisions: Mapping[str, str],
) -> dict[str, ComponentTime]:
    """Return the time of every component in an image; {} if the contender does not report them."""
    answer = [s for s in samples if s.parts]
    if not answer:
        return {}
    components: dict[str, ComponentTime] = {}
    for name, first in _joined(answer[0].parts).items():
        median = statistics.median(sum(_joined(s.parts).get(name, ())) for s in answer)
        flops, peak = work.flops.get(name), peak_of(precisions.get(name, ""), peaks)
        share = flops / (median * peak) if flops and peak and median else None
        components[name] = ComponentTime(calls=len(first), median_s=median, flops=flops, utilisation=share)
    return components


def _joined(parts: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Merge several ControlNets into one component, because not every contender separates them."""
    components: dict[str, list[float]] = {}
    for name, calls in parts.items():
        components.setdefault("controlnet" if name.startswith("controlnet") else name, []).extend(calls)
    return components


def peak_of(precision: str, peaks: Mapping[str, float | None]) -> float | None:
    """Return the highest measured peak that a precision may compute at; for a mix, that of its fastest part."""
    known = [peak for word in precision.split("+") if (peak := peaks.get(word)) is not None]
    return max(known, default=None)


def _utilization(
    samples: Sequence[Sample], work: Workload, peaks: Mapping[str, float | None], precisions: Mapping[str, str]
) -> float | None:
    """Return the time that the peak would take, as a share of the actual time."""
    ideal = [flops / peak if (peak := peak_of(precisions[n], peaks)) else None for n, flops in work.flops.items()]
    if not ideal or None in ideal:
        return None
    return sum(i for i in ideal if i is not None) / statistics.median(s.seconds for s in samples)


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def quality_of(
    case: Case, process: ContenderProcess, calls: Sequence[BenchmarkCall], clip_model: Any
) -> Quality | None:
    """Return the quality of all images that the contender generated; None without images."""
    expected = {s: (w, p) for call in calls for s, w, p in zip(call.seeds, call.expected, call.prompts, strict=True)}
    generated = {s: image for s, image in process.images.items() if image.shape == expected[s][0].shape}
    if not generated:
        return None
    return quality(
        np.stack(list(generated.values())),
        QualityReference(
            prompts=[expected[s][1] for s in generated],
            expected=np.stack([expected[s][0] for s in generated]),
            judged=case.judged and process.contender.backend != "fake",
            clip_model=clip_model,
        ),
    )
