"""The inputs of a build after the model is read, and its stages with an estimate of the time of each."""

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
from .preflight import image_size
from .spec import BuildSpec
from .tuning import TUNABLE_COMPONENTS

TUNED_PRECISIONS = ("int8", "fp8", "auto")


@dataclass(frozen=True, kw_only=True)
class Work:
    """A build whose model is read and whose options are resolved."""

    spec: BuildSpec
    source: Source
    family: Family  # with the requested profile
    prompts: Prompts
    key: str

    def images(self, what: str) -> ImageSet:
        """Return the configuration of the images for the "proof" (held-out prompts) or the "calibration"."""
        height, width = image_size(self.spec, self.family.profile)
        count, steps = self.spec.proof_counts
        common: dict[str, Any] = {"height": height, "width": width, "controls": len(self.spec.controlnet)}
        common["masked"] = self.family.inpaints
        if what == "proof":
            return ImageSet(prompts=self.prompts.held_out[:count], steps=steps, **common)
        return ImageSet(prompts=self.prompts.calibration, steps=20, first_seed=1_000_000, **common)


def weights_of(work: Work) -> dict[str, int]:
    """Return the number of weights of each component."""
    return {name: work.source.weights_count(name) for name in work.family.components}


def stages_of(work: Work) -> list[Stage]:
    """Return the stages with estimates: the time that the demonstration model took, plus some for each gigabyte."""
    weights = {name: 4 * n / 1e9 for name, n in weights_of(work).items()}
    traces = [Stage(name=f"trace {n}", guess_s=14 + 25 * gb) for n, gb in weights.items() if of_graphs(work.spec)]
    if work.spec.backend in backends.COMPILED and opens_float32(work.spec):
        traces += [Stage(name=f"engine {n}", guess_s=20 + 60 * gb) for n, gb in weights.items()]
    records = [s for what in ("proof", "calibration")[: 1 + work.spec.gated] for s in _recordings(work, what, weights)]
    image_s = records[1].guess_s / len(work.images("proof").prompts)
    lowering = []
    if work.spec.precision in TUNED_PRECISIONS:
        trials_s = 2 + 5 * len(work.images("proof").prompts) * image_s
        names = (*(n for n in TUNABLE_COMPONENTS if n in weights), "together")
        lowering = [Stage(name=f"tune {n}", guess_s=20 + trials_s) for n in names]
    elif work.spec.gated:
        lowering = [Stage(name=f"lower {n}", guess_s=4 + 20 * gb) for n, gb in weights.items()]
    checks = [Stage(name=f"check {n}", guess_s=2 + 10 * gb) for n, gb in weights.items()]
    last = [
        Stage(name="schedules", guess_s=8),
        Stage(name="plan", guess_s=2),
        Stage(name="prove", guess_s=3 + image_s),
    ]
    return [*traces, *records, *lowering, *checks, *last]


def _recordings(work: Work, what: str, weights: Mapping[str, float]) -> list[Stage]:
    images, stages = work.images(what), []
    for names in groups(tuple(weights), masked=images.masked):
        calls = len(images.prompts) * (images.steps if "unet" in names else 1)
        each = 0.02 + sum(weights[n] for n in names) * images.height * images.width / 2**18 * 2.5
        stages.append(Stage(name=f"record {', '.join(names)} ({what})", guess_s=4 + calls * each))
    return stages


def of_graphs(spec: BuildSpec) -> bool:
    """Return whether the backend's artifacts are made from traced graphs, not from the model's own weights."""
    return backends.form_of(spec.backend) != "diffusers"


def opens_float32(spec: BuildSpec) -> bool:
    """Return whether the backend opens the float32 form: as the plan itself, a baseline, or a fallback."""
    return not spec.gated or spec.precision in TUNED_PRECISIONS or spec.fallback
