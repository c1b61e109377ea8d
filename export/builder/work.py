"""The inputs of a build after the model is read, and its stages with an estimate of the time of each."""

from __future__ import annotations

from dataclasses import dataclass

from calotype import backends
from calotype.plan.family import Family
from calotype.plan.networks import t2i_adapters_of

from ..onnx.capture import ImageSet, control_types, embedding_sizes, groups
from ..onnx.trace_step import trace_guess_s
from ..precision.variants import computed_from_float32
from ..quality.prompts import Prompts
from ..sources.source import Source
from ..steps.progress import Stage
from .preflight import image_size, recorded_frames
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

    @property
    def weights(self) -> dict[str, int]:
        """The number of weights of each component."""
        return {name: self.source.weights_count(name) for name in self.family.components}

    @property
    def traces(self) -> bool:
        """Whether the backend's artifacts are made from traced graphs, not from the model's own weights."""
        return backends.form_of(self.spec.backend) != "diffusers"

    @property
    def tunes(self) -> bool:
        """Whether a search chooses the precisions."""
        return self.spec.precision in TUNED_PRECISIONS

    @property
    def calibrates(self) -> bool:
        """Whether the lower precision is made from recorded numbers: not if the backend lowers float32 files itself."""
        return self.spec.gated and not computed_from_float32(self.spec.precision, self.spec.backend)

    @property
    def compiles_float32(self) -> bool:
        """Whether the backend opens engines in float32: as the plan itself, a baseline, or a fallback."""
        return self.spec.backend in backends.COMPILED and (not self.spec.gated or self.tunes or self.spec.fallback)

    def images(self, purpose: str) -> ImageSet:
        """Return the configuration of the images for the "proof" (held-out prompts) or the "calibration"."""
        height, width = image_size(self.spec, self.family.profile)
        takes = self.family.image_input
        calibrates = purpose == "calibration"
        count, steps = self.spec.calibration_counts if calibrates else self.spec.proof_counts
        return ImageSet(
            prompts=(self.prompts.calibration if calibrates else self.prompts.held_out)[:count],
            steps=steps,
            height=height,
            width=width,
            controls=control_types(self.family),
            adapters=len(t2i_adapters_of(self.family.components)),
            prompted=embedding_sizes(self.family),
            takes=takes.kind if takes else None,
            enlarges=takes.enlarges if takes else 1,
            frames=recorded_frames(self.family.profile),
            first_seed=1_000_000 if calibrates else 0,
        )

    def stages(self) -> list[Stage]:
        """Return the stages with estimates: what the demonstration model took, plus some time for each gigabyte."""
        sizes = {name: 4 * count / 1e9 for name, count in self.weights.items()}
        stages: dict[str, float] = {}  # name -> seconds
        if self.traces:
            stages |= {f"trace {n}": trace_guess_s(count) for n, count in self.weights.items()}
        if self.compiles_float32:
            stages |= {f"engine {n}": 20 + 60 * gb for n, gb in sizes.items()}
        for purpose in ("proof", "calibration")[: 1 + self.calibrates]:
            stages |= self._recordings(purpose, sizes)
        image_s = next(s for name, s in self._recordings("proof", sizes).items() if "unet" in name)
        if self.tunes:
            trials_s = 2 + 5 * len(self.images("proof").prompts) * image_s
            tuned = (*(n for n in TUNABLE_COMPONENTS if n in sizes), "together")
            stages |= {f"tune {n}": 20 + trials_s for n in tuned}
        elif self.spec.gated:
            stages |= {f"lower {n}": 4 + 20 * gb for n, gb in sizes.items()}
        stages |= {f"check {n}": 2 + 10 * gb for n, gb in sizes.items()}
        stages |= {"schedules": 8, "plan": 2, "prove": 3 + image_s}
        if self.spec.fit:
            stages["fit samplers"] = 60.0 * len(self.spec.fit)
        return [Stage(name=name, guess_s=seconds) for name, seconds in stages.items()]

    def _recordings(self, purpose: str, sizes: dict[str, float]) -> dict[str, float]:
        images, seconds = self.images(purpose), {}
        for names in groups(tuple(sizes), encoded=images.encodes):
            calls = len(images.prompts) * (images.steps if "unet" in names else 1)
            each = 0.02 + sum(sizes[n] for n in names) * images.height * images.width / 2**18 * 2.5
            seconds[f"record {', '.join(names)} ({purpose})"] = 4 + calls * each
        return seconds
