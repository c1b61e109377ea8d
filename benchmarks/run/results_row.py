"""From what a lane went through to its row: medians, shares of the peak, quality. Computes; measures nothing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..measure.correctness import Judging, quality
from ..measure.interval import quantile
from ..measure.record import Part, Quality, Row, Speed
from ..suite.cases import Case
from .contender_process import Lane, Sample, Shot

_OUTSIDE = ("text_encoder", "text_encoder_2", "vae_decoder")  # of the loop over the steps


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a picture (or batch) of the case takes, whoever makes it."""

    calls: int  # of the U-Net
    flops: Mapping[str, int]  # component -> of all its calls; empty where nothing could be counted


def row_of(case: Case, lane: Lane, *, work: Work, peaks: Mapping[str, float | None]) -> Row:
    """The row without ratios and quality. One whose pictures are wrong, or that broke, gets no speed."""
    status, reason = lane.out or ("ok", "")
    right = status == "ok" and bool(lane.samples)
    told: Mapping[str, Any] = lane.opened.told if lane.opened else {}
    precisions = {**dict.fromkeys(work.flops, lane.contender.precision), **told.get("precisions", {})}
    return Row(
        case=case.to_json(),
        case_id=case.id,
        contender=lane.contender.name,
        maker=lane.contender.maker,
        backend=lane.contender.backend,
        precision=lane.contender.precision,
        status=status,
        reason=reason,
        speed=speed_of(case, lane.samples, work) if right else None,
        parts=parts_of([lane.waited] if lane.waited else lane.samples, work, peaks, precisions) if right else {},
        flops=sum(work.flops.values()) or None,
        utilisation=_whole(lane.samples, work, peaks, precisions) if right else None,
        load_s=told.get("load_s"),
        build_s=lane.built.seconds if lane.built else told.get("build_s"),
        build_when=lane.built.when if lane.built else told.get("build_when", ""),
        first_s=lane.opened.first_s if lane.opened and right else None,
        host_peak_bytes=lane.host_peak_bytes,
        device_peak_bytes=lane.device_peak_bytes,
        artifact_bytes=told.get("artifact_bytes"),
        energy_j=_median([s.energy_j for s in lane.samples]) if right else None,
        clock_mhz=_median([s.clock_mhz for s in lane.samples]),
        disturbed_rounds=sum(s.disturbed for s in lane.samples),
        threads=told.get("threads"),
        versions=told.get("versions", {}),
        notes=tuple(told.get("notes", ())),
    )


def speed_of(case: Case, samples: Sequence[Sample], work: Work) -> Speed:
    """Medians of the rounds."""
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
    work: Work,
    peaks: Mapping[str, float | None],
    precisions: Mapping[str, str],
) -> dict[str, Part]:
    """Every component's time in a picture; {} where the contender does not tell them apart."""
    told = [s for s in samples if s.parts]
    if not told:
        return {}
    found: dict[str, Part] = {}
    for name, first in _joined(told[0].parts).items():
        median = statistics.median(sum(_joined(s.parts).get(name, ())) for s in told)
        flops, peak = work.flops.get(name), peak_of(precisions.get(name, ""), peaks)
        share = flops / (median * peak) if flops and peak and median else None
        found[name] = Part(calls=len(first), median_s=median, flops=flops, utilisation=share)
    return found


def _joined(parts: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Several ControlNets as one component: not everybody tells them apart."""
    found: dict[str, list[float]] = {}
    for name, calls in parts.items():
        found.setdefault("controlnet" if name.startswith("controlnet") else name, []).extend(calls)
    return found


def peak_of(precision: str, peaks: Mapping[str, float | None]) -> float | None:
    """The highest measured peak that a precision may compute at: of a mix, that of its fastest part."""
    known = [peak for word in precision.split("+") if (peak := peaks.get(word)) is not None]
    return max(known, default=None)


def _whole(
    samples: Sequence[Sample], work: Work, peaks: Mapping[str, float | None], precisions: Mapping[str, str]
) -> float | None:
    """The time that the peak would take, as a share of the time taken."""
    ideal = [flops / peak if (peak := peak_of(precisions[n], peaks)) else None for n, flops in work.flops.items()]
    if not ideal or None in ideal:
        return None
    return sum(i for i in ideal if i is not None) / statistics.median(s.seconds for s in samples)


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def quality_of(case: Case, lane: Lane, shots: Sequence[Shot], clip_model: Any) -> Quality | None:
    """Of all pictures that the lane painted; None where it painted none."""
    wanted = {s: (w, p) for shot in shots for s, w, p in zip(shot.seeds, shot.wanted, shot.prompts, strict=True)}
    painted = {s: picture for s, picture in lane.pictures.items() if picture.shape == wanted[s][0].shape}
    if not painted:
        return None
    return quality(
        np.stack(list(painted.values())),
        Judging(
            prompts=[wanted[s][1] for s in painted],
            wanted=np.stack([wanted[s][0] for s in painted]),
            judged=case.judged and lane.contender.backend != "fake",
            clip_model=clip_model,
        ),
    )
