"""What a build has to do: the model and the answers it starts from, and its stages with a guess at the time of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from calotype import backends
from calotype.plan.family import Family

from ..onnx.capture import ImageSet, groups
from ..quality.prompts import Prompts
from ..sources.source import Source
from ..steps.progress import Stage
from .preflight import picture_size
from .spec import BuildSpec
from .tuning import TUNED

TUNED_PRECISIONS = ("int8", "fp8", "auto")


@dataclass(frozen=True, kw_only=True)
class Work:
    """A build with its model read and every question answered."""

    spec: BuildSpec
    source: Source
    family: Family  # its profile is the one asked for
    prompts: Prompts
    key: str

    def pictures(self, what: str) -> ImageSet:
        """The pictures of the "proof" (held-out prompts) or the "calibration"."""
        height, width = picture_size(self.spec, self.family.profile)
        count, steps = self.spec.proof_counts
        common: dict[str, Any] = {"height": height, "width": width, "controls": len(self.spec.controlnet)}
        common["masked"] = self.family.inpaints
        if what == "proof":
            return ImageSet(prompts=self.prompts.held_out[:count], steps=steps, **common)
        return ImageSet(prompts=self.prompts.calibration, steps=20, first_seed=1_000_000, **common)


def weights_of(work: Work) -> dict[str, int]:
    """The number of weights of each component."""
    return {name: work.source.weights_count(name) for name in work.family.components}


def stages_of(work: Work) -> list[Stage]:
    """All that will be done, with a guess at each: what the demonstration model took, more by the gigabyte."""
    weights = {name: 4 * n / 1e9 for name, n in weights_of(work).items()}
    traces = [Stage(name=f"trace {n}", guess_s=14 + 25 * gb) for n, gb in weights.items() if of_graphs(work.spec)]
    if work.spec.backend in backends.COMPILED and opens_float32(work.spec):
        traces += [Stage(name=f"engine {n}", guess_s=20 + 60 * gb) for n, gb in weights.items()]
    records = [s for what in ("proof", "calibration")[: 1 + work.spec.gated] for s in _recordings(work, what, weights)]
    picture_s = records[1].guess_s / len(work.pictures("proof").prompts)
    lowering = []
    if work.spec.precision in TUNED_PRECISIONS:
        tries = 2 + 5 * len(work.pictures("proof").prompts) * picture_s
        lowering = [
            Stage(name=f"tune {n}", guess_s=20 + tries) for n in (*(t for t in TUNED if t in weights), "together")
        ]
    elif work.spec.gated:
        lowering = [Stage(name=f"lower {n}", guess_s=4 + 20 * gb) for n, gb in weights.items()]
    checks = [Stage(name=f"check {n}", guess_s=2 + 10 * gb) for n, gb in weights.items()]
    last = [
        Stage(name="schedules", guess_s=8),
        Stage(name="plan", guess_s=2),
        Stage(name="prove", guess_s=3 + picture_s),
    ]
    return [*traces, *records, *lowering, *checks, *last]


def _recordings(work: Work, what: str, weights: Mapping[str, float]) -> list[Stage]:
    pictures, found = work.pictures(what), []
    for names in groups(tuple(weights), masked=pictures.masked):
        calls = len(pictures.prompts) * (pictures.steps if "unet" in names else 1)
        each = 0.02 + sum(weights[n] for n in names) * pictures.height * pictures.width / 2**18 * 2.5
        found.append(Stage(name=f"record {', '.join(names)} ({what})", guess_s=4 + calls * each))
    return found


def of_graphs(spec: BuildSpec) -> bool:
    """Are the backend's artifacts made from traced graphs, or the model's own weights?"""
    return backends.form_of(spec.backend) != "diffusers"


def opens_float32(spec: BuildSpec) -> bool:
    """Is the float32 form opened on the backend: as the plan's own, to be tuned against, or to fall back on?"""
    return not spec.gated or spec.precision in TUNED_PRECISIONS or spec.fallback
