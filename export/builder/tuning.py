"""Search for the fastest precision of each component whose images stay inside the quality bounds.

Each trial lowers one component and keeps the others in float32. It compares the images of held-out prompts with those
of float32, and alternates timed calls with the float32 component. For int8, a bisection finds the smallest number of
sensitive groups that must stay in float32. At the end the chosen components are evaluated together; while they miss
the bounds, the one that gains least returns to float32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from calotype import backends
from calotype.plan.plan import Artifact, Plan, write_plan

from ..onnx.capture import ImageSet
from ..precision.variants import Part, calibrated, half, not_tried, quantized, tuned_as
from ..quality.bounds import failed
from ..steps.progress import Progress
from ..steps.subprocess_task import ProgressHandler, run_in_subprocess
from ..tensorrt.engines import engines_for
from .spec import BuildSpec

TUNABLE_COMPONENTS = ("unet", "vae_decoder", "text_encoder", "text_encoder_2")  # of text-to-image, slowest first
_MIN_SPEEDUP = 1.03  # over float32: less is noise, and does not justify an error


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One row of the table: a component in a precision, with `kept` of its `groups` in float32."""

    component: str
    precision: str
    kept: int = 0
    groups: int = 0
    speed: float | None = None
    loss: Mapping[str, float] = field(default_factory=dict)
    passed: bool = False
    chosen: bool = False
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A trial and its artifact."""

    row: Trial
    artifact: Artifact

    @property
    def gain(self) -> float:
        """The time that it saves, in units of one float32 call: the U-Net runs many times."""
        weight = 20.0 if self.row.component == "unet" else 1.0
        return weight * (1 - 1 / (self.row.speed or 1.0))


@dataclass(frozen=True, kw_only=True)
class PlanEvaluator:
    """Generates images of held-out prompts with a plan and compares them with `reference` (the decoder's recording)."""

    spec: BuildSpec
    images: ImageSet
    reference: Path

    def evaluate(self, plan: Plan, *, decoder_only: bool = False) -> dict[str, Any]:
        """Return the metrics of the plan's images, measured in a child process."""
        with tempfile.TemporaryDirectory(prefix="calotype-") as scratch:
            write_plan(plan, Path(scratch))
            return run_in_subprocess(
                "evaluating the images",
                "calotype.export.quality.evaluate:evaluate_plan",
                plan=scratch,
                backend=self.spec.backend,
                images=asdict(self.images),
                reference=str(self.reference),
                metrics=[b.metric for b in self.spec.max_loss],
                clip_model=self.spec.clip_model,
                decoder_only=decoder_only,
            ).notes


class Tuning:
    """Searches the precisions of one plan, whose first artifact of every component is float32."""

    def __init__(self, plan: Plan, recorded: Mapping[str, Path], evaluator: PlanEvaluator, progress: Progress) -> None:
        self._plan, self._recorded = plan, recorded
        self._evaluator, self._progress = evaluator, progress
        self.table: list[Trial] = []

    def run(self, precisions: tuple[str, ...] | None = None) -> Plan:
        """Return the plan with the chosen artifacts first. What does not pass stays in float32.

        Args:
            precisions: what to try; by default what the spec requests. `table` lists all trials.
        """
        spec = self._evaluator.spec
        precisions = tuned_as(spec.precision, spec.backend) if precisions is None else precisions
        chosen: dict[str, Candidate] = {}
        for name in (n for n in TUNABLE_COMPONENTS if n in self._plan.components):
            with self._progress.stage(f"tune {name}"):
                candidates = [c for p in precisions for c in self._try(name, p)]
                good = [c for c in candidates if c.row.passed and (c.row.speed or 0) >= _MIN_SPEEDUP]
                if good:
                    chosen[name] = max(good, key=lambda c: c.row.speed or 0)
        with self._progress.stage("tune together"):
            plan = self._together(chosen)
        self.table = [replace(row, chosen=any(row is c.row for c in chosen.values())) for row in self.table]
        if spec.precision == "auto":
            reasons = not_tried(spec.backend)
            self.table += [Trial(component="all", precision=p, why=f"not tried: {why}") for p, why in reasons.items()]
        return plan

    def _together(self, chosen: dict[str, Candidate]) -> Plan:
        """Return a plan with all chosen artifacts. Drop the one that gains least from `chosen` until images pass."""
        while True:
            plan = self._plan
            for name, candidate in chosen.items():
                plan = _with(plan, name, candidate.artifact)
            if not chosen:
                return plan
            loss = self._evaluator.evaluate(plan)
            missed = failed(self._evaluator.spec.max_loss, loss)
            row = Trial(component="+".join(chosen), precision="chosen mix", loss=_numbers(loss), passed=not missed)
            self.table.append(replace(row, why="; ".join(missed)))
            if not missed:
                return plan
            dropped = min(chosen, key=lambda name: chosen[name].gain)
            self._progress.note(f"together they miss the bounds ({'; '.join(missed)}): {dropped} stays in float32")
            del chosen[dropped]

    def _try(self, name: str, precision: str) -> list[Candidate]:
        part = part_of(self._evaluator.spec, self._plan, name, self._recorded[name], self._progress.step)
        backend = self._evaluator.spec.backend
        if not precision.startswith(("int8", "fp8")):
            return [self._candidate(half(part, precision, backend), Trial(component=name, precision=precision))]
        # Bisect for the smallest number of groups in float32 that passes; every trial is a row.
        calibration = calibrated(part, precision.split("+")[0], backend)
        groups = calibration.groups
        candidates: list[Candidate] = []
        low, high = 0, len(groups)  # with all groups kept it would be float32
        while low < high:
            kept = (low + high) // 2 if candidates else 0
            nodes = [node for g in groups[:kept] for node in g.nodes]
            artifact = replace(quantized(part, calibration.ranges, nodes, precision, backend), precision=precision)
            row = Trial(component=name, precision=precision, kept=kept, groups=len(groups))
            candidates.append(self._candidate(artifact, row))
            low, high = (low, kept) if candidates[-1].row.passed else (kept + 1, high)
        return candidates

    def _candidate(self, artifact: Artifact, row: Trial) -> Candidate:
        """Evaluate and time the artifact, and add the row to the table."""
        name, plan = row.component, _with(self._plan, row.component, artifact)
        loss = self._evaluator.evaluate(plan, decoder_only=name == "vae_decoder")
        missed = failed(self._evaluator.spec.max_loss, loss)
        speed = None if missed else self._speed(plan, name)
        row = replace(row, loss=_numbers(loss), speed=speed, passed=not missed, why="; ".join(missed))
        self.table.append(row)
        result = f"psnr {loss['psnr']:.1f} dB" + ("" if speed is None else f", {speed:.2f} times as fast")
        kept = f", {row.kept} of {row.groups} groups in float32" if row.groups else ""
        self._progress.note(f"{row.precision}{kept}: {result}{'' if not missed else ', misses the bounds'}")
        return Candidate(row=row, artifact=artifact)

    def _speed(self, plan: Plan, name: str) -> float:
        with tempfile.TemporaryDirectory(prefix="calotype-") as one, tempfile.TemporaryDirectory() as two:
            write_plan(plan, Path(one))
            write_plan(self._plan, Path(two))
            value: dict[str, float] = run_in_subprocess(
                f"timing the {name}",
                "calotype.export.quality.evaluate:compare_speed",
                plan=one,
                baseline=two,
                name=name,
                backend=self._evaluator.spec.backend,
                recording=str(self._recorded[name]),
            ).value
        return value["speed"]


def part_of(spec: BuildSpec, plan: Plan, name: str, recording: Path, tell: ProgressHandler | None = None) -> Part:
    """Return what a component's artifacts are made from: its graph, or the model's own weights."""
    component = plan.components[name]
    form = "diffusers" if backends.form_of(spec.backend) == "diffusers" else "onnx"
    source = next(a for a in component.artifacts if a.form == form)
    engines = engines_for(spec.backend, plan.profile, spec.engine, tell)
    return Part(component=component, traced=source, recording=recording, engines=engines)


def _with(plan: Plan, name: str, artifact: Artifact) -> Plan:
    """Return the plan with this artifact before the component's other artifacts."""
    component = plan.components[name]
    return replace(plan, components={**plan.components, name: component.with_artifacts(artifact, *component.artifacts)})


def _numbers(loss: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in loss.items() if isinstance(value, float)}
