"""Which precision for which component? The fastest mix whose pictures stay inside the gate, and all that was tried.

A component is tried alone, the others in float32: its pictures on held-out prompts against float32's, its speed
against its float32 self in turns. int8 leaves alone as many of the most sensitive groups as the gate makes it, found by
halving. At last the chosen ones are judged together, and the one that gains least is given up while they miss.
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

TUNED = ("unet", "vae_decoder", "text_encoder", "text_encoder_2")  # what a picture goes through, the slowest first
_WORTH = 1.03  # times as fast as float32: less is noise, and no reason to give up exactness


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One row of the table: a component in a precision. `kept` groups were left in float32, of `groups`."""

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
    """A row and what it stands for."""

    row: Tried
    artifact: Artifact


@dataclass(frozen=True, kw_only=True)
class Judging:
    """How pictures are made and measured: on held-out prompts, against `reference` (the recorded decoder)."""

    spec: BuildSpec
    pictures: ImageSet
    reference: Path

    def judge(self, plan: Plan, *, decoder_alone: bool = False) -> dict[str, Any]:
        """The figures of the plan's pictures, from a child process."""
        with tempfile.TemporaryDirectory(prefix="calotype-") as scratch:
            write_plan(plan, Path(scratch))
            done = run_in_subprocess(
                "the proof of the pictures",
                "calotype.export.quality.evaluate:prove",
                plan=scratch,
                backend=self.spec.backend,
                pictures=asdict(self.pictures),
                reference=str(self.reference),
                metrics=[b.metric for b in self.spec.max_loss],
                clip_model=self.spec.clip_model,
                decoder_alone=decoder_alone,
            )
        return {**done.value, "peak_bytes": done.peak_bytes}


class Tuning:
    """The search over one plan. `plan` has every component's float32 ONNX as its first artifact."""

    def __init__(self, plan: Plan, recorded: Mapping[str, Path], judging: Judging, progress: Progress) -> None:
        self._plan, self._recorded = plan, recorded
        self._judging, self._progress = judging, progress
        self.table: list[Tried] = []

    def run(self, precisions: tuple[str, ...]) -> Plan:
        """The plan with the chosen artifacts first. `table` says what was tried."""
        chosen: dict[str, Candidate] = {}
        for name in (n for n in TUNED if n in self._plan.components):
            with self._progress.stage(f"tune {name}"):
                tried = [c for p in precisions for c in self._tried(name, p)]
                good = [c for c in tried if c.row.passed and (c.row.speed or 0) >= _WORTH]
                if good:
                    chosen[name] = max(good, key=lambda c: c.row.speed or 0)
        with self._progress.stage("tune together"):
            plan = self._together(chosen)
        self.table = [replace(row, chosen=any(row is c.row for c in chosen.values())) for row in self.table]
        return plan

    def explain(self, reasons: Mapping[str, str]) -> None:
        """Rows for what was not tried."""
        self.table += [Tried(component="all", precision=p, why=f"not tried: {why}") for p, why in reasons.items()]

    def _together(self, chosen: dict[str, Candidate]) -> Plan:
        """All that was chosen in one plan; what gains least is dropped from `chosen` until the pictures pass."""
        while True:
            plan = self._plan
            for name, candidate in chosen.items():
                plan = _with(plan, name, candidate.artifact)
            if not chosen:
                return plan
            loss = self._judging.judge(plan)
            missed = failed(self._judging.spec.max_loss, loss)
            row = Tried(component="+".join(chosen), precision="chosen mix", loss=_numbers(loss), passed=not missed)
            self.table.append(replace(row, why="; ".join(missed)))
            if not missed:
                return plan
            least = min(chosen, key=lambda name: self._gain(chosen[name]))
            self._progress.note(f"together they miss the gate ({'; '.join(missed)}): {least} stays in float32")
            del chosen[least]

    @staticmethod
    def _gain(candidate: Candidate) -> float:
        """Seconds that are saved by it, roughly: the U-Net runs many times."""
        weight = 20.0 if candidate.row.component == "unet" else 1.0
        return weight * (1 - 1 / (candidate.row.speed or 1.0))

    def _tried(self, name: str, precision: str) -> list[Candidate]:
        part = self._part(name)
        if not precision.startswith(("int8", "fp8")):
            artifact = half(part, precision, self._judging.spec.backend)
            return [self._candidate(name, artifact, Tried(component=name, precision=precision))]
        return self._quantized(part, precision)

    def _part(self, name: str) -> Part:
        return part_of(self._judging.spec, self._plan, name, self._recorded[name], self._progress.step)

    def _quantized(self, part: Part, precision: str) -> list[Candidate]:
        """The fewest groups left alone that pass, by halving; every trial is a row."""
        dtype = precision.split("+")[0]
        ranges, groups = calibrated(part, dtype, self._judging.spec.backend)
        found: list[Candidate] = []
        low, high = 0, len(groups)  # with all groups left alone it would be float32
        while low < high:
            kept = (low + high) // 2 if found else 0
            nodes = [node for g in groups[:kept] for node in g.nodes]
            artifact = replace(
                quantized(part, ranges, nodes, precision, self._judging.spec.backend), precision=precision
            )
            row = Tried(component=part.name, precision=precision, kept=kept, groups=len(groups))
            candidate = self._candidate(part.name, artifact, row)
            found.append(candidate)
            if candidate.row.passed:
                high = kept
            else:
                low = kept + 1
        return found

    def _candidate(self, name: str, artifact: Artifact, row: Tried) -> Candidate:
        """Judged and timed; the row goes into the table."""
        plan = _with(self._plan, name, artifact)
        loss = self._judging.judge(plan, decoder_alone=name == "vae_decoder")
        missed = failed(self._judging.spec.max_loss, loss)
        speed = None if missed else self._speed(plan, name)
        row = replace(row, loss=_numbers(loss), speed=speed, passed=not missed, why="; ".join(missed))
        self.table.append(row)
        told = f"psnr {loss['psnr']:.1f} dB" + ("" if speed is None else f", {speed:.2f} times as fast")
        kept = f", {row.kept} of {row.groups} groups kept" if row.groups else ""
        self._progress.note(f"{row.precision}{kept}: {told}{'' if not missed else ': missed'}")
        return Candidate(row=row, artifact=artifact)

    def _speed(self, plan: Plan, name: str) -> float:
        with tempfile.TemporaryDirectory(prefix="calotype-") as one, tempfile.TemporaryDirectory() as two:
            write_plan(plan, Path(one))
            write_plan(self._plan, Path(two))
            value: dict[str, float] = run_in_subprocess(
                f"timing the {name}",
                "calotype.export.quality.evaluate:race",
                plan=one,
                rival=two,
                name=name,
                backend=self._judging.spec.backend,
                recording=str(self._recorded[name]),
            ).value
        return value["speed"]


def part_of(spec: BuildSpec, plan: Plan, name: str, recording: Path, tell: ProgressHandler | None = None) -> Part:
    """What the artifacts of a component are made from: its graph, or its own weights."""
    component = plan.components[name]
    form = "diffusers" if backends.form_of(spec.backend) == "diffusers" else "onnx"
    source = next(a for a in component.artifacts if a.form == form)
    engines = engines_for(spec.backend, plan.profile, spec.engine, tell)
    return Part(component=component, traced=source, recording=recording, engines=engines)


def _with(plan: Plan, name: str, artifact: Artifact) -> Plan:
    """The plan with this artifact first for the component, and its others after it."""
    component = plan.components[name]
    return replace(plan, components={**plan.components, name: component.with_artifacts(artifact, *component.artifacts)})


def _numbers(loss: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in loss.items() if isinstance(value, float)}


def tuned(
    plan: Plan, recorded: Mapping[str, Path], judging: Judging, progress: Progress
) -> tuple[Plan, list[dict[str, Any]]]:
    """The plan for `--precision int8`, `fp8` or `auto`, and the table: where nothing passes, float32 and why."""
    spec = judging.spec
    tuning = Tuning(plan, recorded, judging, progress)
    best = tuning.run(tuned_as(spec.precision, spec.backend))
    if spec.precision == "auto":
        tuning.explain(not_tried(spec.backend))
    return best, [asdict(row) for row in tuning.table]
