"""The row of a contender: medians, shares of the peak, quality. This module measures nothing."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..measure.correctness import quality
from ..measure.record import ComponentTime, Quality, ResultRow, Speed, Status
from ..suite.cases import Case
from ..suite.contenders import Contender
from .contender_process import BenchmarkCall, ContenderProcess, Sample
from .workload import CaseContext

_OUTSIDE = ("text_encoder", "text_encoder_2", "vae_decoder")  # outside the loop over the steps
Peaks = Mapping[str, float | None]


def row_of(case: Case, contender: Contender, status: Status, reason: str, **more: Any) -> ResultRow:
    """Return a row of a contender. Without `more`, it has no figures."""
    return ResultRow(
        case=case.to_json(),
        case_id=case.id,
        contender=contender.name,
        maker=contender.maker,
        backend=contender.backend,
        precision=contender.precision,
        status=status,
        reason=reason,
        **more,
    )


def result_row(context: CaseContext, process: ContenderProcess, *, peaks: Peaks) -> ResultRow:
    """Return the row without ratios and quality. A contender that failed, or whose images are wrong, gets no speed."""
    status, reason = process.exclusion or ("ok", "")
    loaded, samples, flops = process.loaded, process.samples, context.flops
    speed: dict[str, Any] = {}
    if status == "ok" and samples:
        precisions = {**dict.fromkeys(flops, process.contender.precision), **loaded.get("precisions", {})}
        parts_samples = [process.synchronized] if process.synchronized else samples
        speed = {
            "speed": speed_of(context, samples),
            "parts": parts_of(parts_samples, flops, peaks, precisions),
            "utilization": _utilization(samples, flops, peaks, precisions),
            "first_s": process.first_s,
            "energy_j": _median(sample.energy_j for sample in samples),
        }
    return row_of(
        context.case,
        process.contender,
        status,
        reason,
        **speed,
        flops=sum(flops.values()) or None,
        load_s=loaded.get("load_s"),
        build_s=process.built.seconds if process.built else loaded.get("build_s"),
        build_when=process.built.when if process.built else loaded.get("build_when", ""),
        host_peak_bytes=process.host_peak_bytes,
        device_peak_bytes=process.device_peak_bytes,
        artifact_bytes=loaded.get("artifact_bytes"),
        clock_mhz=_median(sample.clock_mhz for sample in samples),
        disturbed_rounds=sum(sample.disturbed for sample in samples),
        threads=loaded.get("threads"),
        versions=loaded.get("versions", {}),
        notes=tuple(loaded.get("notes", ())),
    )


def speed_of(context: CaseContext, samples: Sequence[Sample]) -> Speed:
    """Return the medians of the rounds."""
    seconds = [sample.seconds for sample in samples]
    low, median, high = map(float, np.quantile(seconds, (0.1, 0.5, 0.9)))
    outside = [sum(sum(s.parts.get(name, ())) for name in _OUTSIDE) for s in samples]
    looped = [s.seconds - out for s, out in zip(samples, outside, strict=True) if s.parts]
    return Speed(
        samples_s=tuple(seconds),
        median_s=median,
        p10_s=low,
        p90_s=high,
        images_per_s=context.case.batch / median,
        it_per_s=context.calls / statistics.median(looped) if looped else None,
    )


def parts_of(
    samples: Sequence[Sample], flops: Mapping[str, int], peaks: Peaks, precisions: Mapping[str, str]
) -> dict[str, ComponentTime]:
    """Return the time of every component in an image; {} if the contender does not report them."""
    timed = [sample.parts for sample in samples if sample.parts]
    components: dict[str, ComponentTime] = {}
    for name, calls in timed[0].items() if timed else ():
        median = statistics.median(sum(parts.get(name, ())) for parts in timed)
        count, peak = flops.get(name), peak_of(precisions.get(name, ""), peaks)
        share = count / (median * peak) if count and peak and median else None
        components[name] = ComponentTime(calls=len(calls), median_s=median, flops=count, utilization=share)
    return components


def peak_of(precision: str, peaks: Peaks) -> float | None:
    """Return the highest measured peak that a precision may compute at; for a mix, that of its fastest part."""
    known = [peak for word in precision.split("+") if (peak := peaks.get(word)) is not None]
    return max(known, default=None)


def _utilization(
    samples: Sequence[Sample], flops: Mapping[str, int], peaks: Peaks, precisions: Mapping[str, str]
) -> float | None:
    """Return the time that the peak would take, as a share of the actual time."""
    limits = {name: peak_of(precisions[name], peaks) for name in flops}
    ideal_s = sum(count / peak for name, count in flops.items() if (peak := limits[name]))
    return ideal_s / statistics.median(s.seconds for s in samples) if limits and all(limits.values()) else None


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def quality_of(context: CaseContext, process: ContenderProcess, calls: Sequence[BenchmarkCall]) -> Quality | None:
    """Return the quality of all images that the contender generated; None without images."""
    expected = {s: (w, p) for call in calls for s, w, p in zip(call.seeds, call.expected, call.prompts, strict=True)}
    seeds = [seed for seed, image in process.images.items() if image.shape == expected[seed][0].shape]
    if not seeds:
        return None
    return quality(
        np.stack([process.images[seed] for seed in seeds]),
        np.stack([expected[seed][0] for seed in seeds]),
        [expected[seed][1] for seed in seeds],
        judged=context.case.judged and process.contender.backend != "fake",
        clip_model=context.settings.clip_model,
    )
