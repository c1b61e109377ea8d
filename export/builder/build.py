"""`calotype build`: turn a model into a plan, component by component, and verify each one before keeping it.

This module has the order of the stages and the key that identifies a finished plan. Each stage is implemented in its
own module: trace, capture, precision, tuning, evaluate, assembly.
"""

from __future__ import annotations

import datetime
import platform
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from calotype import backends
from calotype.errors import BuildError, CheckError, SourceError
from calotype.files import locks
from calotype.plan.family import family_of
from calotype.plan.plan import Artifact, Plan, PlannedComponent, is_plan, read_plan, write_plan
from calotype.sampling.schedulers import spec_from
from calotype.system import threads
from calotype.system.nvidia import gpu_name

from ..fit.spec import fit_spec_from
from ..onnx import check
from ..onnx.capture import record_all
from ..onnx.trace_step import trace_step, traced
from ..precision.variants import check_precision, half, small_weights
from ..quality.bounds import failed
from ..quality.metrics import require
from ..quality.prompts import knows_captions_only, no_prompts, prompts_for
from ..steps.progress import Display, Progress
from ..steps.subprocess_task import run_in_subprocess
from ..steps.versions import tool_versions
from ..store.store import STORE, key_of
from ..tensorrt.engines import default_profile, engines_for, parse_engine_options
from ..tensorrt.options import EngineOptions
from .assembly import assemble, check_output, staging
from .built import keep_built
from .preflight import Need, check_room
from .prepare import plan_of, reference, source_with
from .samplers import fill_samplers
from .spec import BuildSpec
from .tuning import PlanEvaluator, Tuning, part_of
from .work import Work

BUILDER = 2  # increment when the same spec builds a different plan


@dataclass(frozen=True, kw_only=True)
class Built:
    """A plan, and whether this call built it (`fresh`) or it already existed."""

    plan: Plan
    fresh: bool


def build(spec: BuildSpec, display: Display | None = None) -> Built:
    """Build the plan of `spec`, unless the output folder already holds it.

    Args:
        spec: The model, the output folder, the backend and the options.
        display: Shows the progress; entered only if there is work to do. By default, nothing is shown.

    Returns:
        The plan, and whether this call built it.

    Raises:
        InputError: An option is invalid.
        SourceError: The model cannot be read.
        BuildError: The plan cannot be built on this machine.
        CheckError: The outputs are not close enough to float32.
    """
    check_backend(spec)
    if is_plan(spec.model):
        raise BuildError(
            f"{spec.model} is already a plan. Pass the model that it was built from.", backend=spec.backend
        )
    check_output(spec.output)
    work = _prepared(spec)
    if (plan := _existing_plan(work)) is not None:
        return Built(plan=plan, fresh=False)
    need = check_room(spec, work.family.profile, work.weights, work.family.loads)
    lock = STORE.root / f"{key_of({'plan': str(spec.output.absolute())})}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with locks.exclusive(lock, wait_for=f"the plan {spec.output}"):
        if (plan := _existing_plan(work)) is not None:  # another process may have built it while we waited
            return Built(plan=plan, fresh=False)
        with display or Display() as shown, tempfile.TemporaryDirectory(prefix="calotype-build-") as scratch:
            running = _Build(work, Progress(work.stages(), shown), Path(scratch), need)
            return Built(plan=running.run(), fresh=True)


def check_backend(spec: BuildSpec) -> None:
    """Raise `BuildError` if this machine or this version cannot build for the backend in the requested precision."""
    parse_engine_options(spec.backend, spec.engine)
    if spec.weights and backends.form_of(spec.backend) == "diffusers":
        raise BuildError(
            f"--weights {spec.weights} quantizes ONNX graphs, which {spec.backend} does not use. Leave --weights out.",
            backend=spec.backend,
        )
    reason = backends.unavailable(spec.backend)
    if reason:
        raise BuildError(
            f"a build tests the plan on its backend, and {spec.backend} cannot run here: {reason}.",
            backend=spec.backend,
        )
    check_precision(spec.backend, spec.precision)


def _prepared(spec: BuildSpec) -> Work:
    source = source_with(
        spec.model,
        controlnets=spec.controlnet,
        vae=spec.vae,
        unet=spec.unet,
        ip_adapters=spec.ip_adapter,
        image_encoder=spec.image_encoder,
        t2i_adapters=spec.t2i_adapter,
        motion_adapter=spec.motion_adapter,
        style_aligned=spec.style_aligned,
        pag=spec.pag,
        loras=spec.lora,
        words=spec.textual_inversion,
        offline=spec.offline,
    )
    family = family_of(source.configs)
    defaults = default_profile(family.profile) if spec.backend in backends.COMPILED else family.profile
    ranges = {name: getattr(spec, name) or getattr(defaults, name) for name in ("batch", "height", "width", "frames")}
    profile = family.profile.narrowed(**ranges)
    for name in (*spec.scheduler, *(fit_spec_from(text).scheduler for text in spec.fit)):
        spec_from(name, source.configs["scheduler"])  # report an unknown name before the work
    (count, _), (calibrating, _) = spec.proof_counts, spec.calibration_counts
    counts = {"calibration": calibrating, "held_out": count}
    if family.prompting.states:
        prompts = prompts_for(demo=knows_captions_only(source.folder / "tokenizer"), file=spec.prompts, **counts)
    else:
        prompts = no_prompts(spec.model, file=spec.prompts, **counts)
    require([b.metric for b in spec.max_loss], judged=prompts.judged, clip_model=spec.clip_model)
    key = key_of(
        {
            "builder": BUILDER,
            "spec": {k: v for k, v in spec.to_json().items() if k not in ("output", "model", "offline")},
            "source": source.fingerprint,
            "prompts": asdict(prompts),
            "tools": tool_versions(spec.backend),
            "threads": threads.available() if spec.gated else None,  # timings chose the precisions
        }
    )
    return Work(spec=spec, source=source, family=replace(family, profile=profile), prompts=prompts, key=key)


def _existing_plan(work: Work) -> Plan | None:
    """Return the plan in the output folder if it is the one that this build would make."""
    if not is_plan(work.spec.output):
        return None
    try:
        plan = read_plan(work.spec.output)
    except SourceError:  # damaged, or written by another version: build it again
        return None
    return plan if plan.build.get("key") == work.key else None


class _Build:
    """Runs the stages of one build."""

    def __init__(self, work: Work, progress: Progress, scratch: Path, need: Need) -> None:
        self._work, self._progress, self._scratch = work, progress, scratch
        self._need = need
        self._began = time.monotonic()
        self._table: list[dict[str, Any]] = []  # of the trials, if a search chooses the precisions

    def run(self) -> Plan:
        """Run all stages and return the finished plan. If a stage fails, the output folder stays as it was."""
        work = self._work
        components = {c.name: reference(c, work.source) for c in work.family.components.values()}
        bare = plan_of(work.source, work.family, components)
        plan = self._traced(bare) if work.traces else bare
        proof = self._record(bare, "proof")
        if work.spec.gated:
            plan = self._lowered(plan, self._record(bare, "calibration") if work.calibrates else proof, proof)
        plan = self._checked(plan, proof)
        with staging(work.spec.output) as folder:
            self._finish(plan, proof["vae_decoder"], folder)
        return read_plan(work.spec.output)

    def _traced(self, bare: Plan) -> Plan:
        """Add the float32 ONNX graph of every component, and its engine if the backend compiles graphs."""
        work, components = self._work, {}
        engines = engines_for(work.spec.backend, work.family.profile, work.spec.engine, self._progress.step)
        for name, component in work.family.components.items():
            with self._progress.stage(f"trace {name}", cached=trace_step(component, work.source).is_stored):
                planned = bare.components[name]
                artifacts = [traced(component, work.source, work.family.profile)]
            if engines is not None and work.compiles_float32:
                with self._progress.stage(f"engine {name}"):
                    artifacts.insert(0, engines.of(planned, artifacts[0]))
            components[name] = planned.with_artifacts(*artifacts)
        return replace(bare, components=components)

    def _record(self, bare: Plan, purpose: str) -> dict[str, Path]:
        plan = replace(bare, profile=replace(bare.profile, batch=replace(bare.profile.batch, min=1, opt=1)))
        return record_all(plan, self._work.source, self._work.images(purpose), purpose, self._progress)

    def _lowered(self, plan: Plan, calibration: Mapping[str, Path], proof: Mapping[str, Path]) -> Plan:
        """Return the plan in the requested precision."""
        spec = self._work.spec
        if self._work.tunes:
            tuning = Tuning(plan, calibration, self._evaluator(proof["vae_decoder"]), self._progress)
            plan = tuning.run()
            self._table = [asdict(row) for row in tuning.table]
            return plan
        components = {}
        for name, component in plan.components.items():
            with self._progress.stage(f"lower {name}"):
                part = part_of(spec, plan, name, calibration[name], self._progress.step)
                weights = spec.weights
                lowered = small_weights(part, weights) if weights else half(part, spec.precision, spec.backend)
                components[name] = component.with_artifacts(lowered, *component.artifacts)
        return replace(plan, components=components)

    def _evaluator(self, decoded: Path) -> PlanEvaluator:
        return PlanEvaluator(spec=self._work.spec, images=self._work.images("proof"), reference=decoded)

    def _checked(self, plan: Plan, recorded: Mapping[str, Path]) -> Plan:
        """Check each component on its backend with recorded inputs, and store the errors in the plan."""
        write_plan(plan, self._scratch)
        components = {}
        for name, component in plan.components.items():
            with self._progress.stage(f"check {name}"):
                components[name] = component.with_artifacts(*self._checked_artifacts(component, recorded[name]))
        return replace(plan, components=components)

    def _checked_artifacts(self, component: PlannedComponent, recording: Path) -> list[Artifact]:
        spec, name = self._work.spec, component.name
        result = run_in_subprocess(
            f"checking the {name}",
            "calotype.export.onnx.check:check_planned",
            plan=str(self._scratch),
            name=name,
            backend=spec.backend,
            reference=str(recording),
        ).notes
        first, *others = component.artifacts
        error = result["max_relative_error"]
        if not spec.gated and error > check.TOLERANCE:
            raise CheckError(
                f"the {name} on {spec.backend} differs too much from eager float32: got a relative error of "
                f"{error:.1e} over {result['calls']} recorded calls, expected at most {check.TOLERANCE:.0e}. The plan "
                "is not kept.",
                backend=spec.backend,
                component=name,
                relative_error=error,
                limit=check.TOLERANCE,
            )
        figures = {"backend": spec.backend, "max_relative_error": error, "real_inputs": result}
        traced_error = first.check.get("max_relative_error")
        first = replace(first, check={**first.check, "traced_error": traced_error, **figures})
        return [first, *(a for a in others if spec.fallback or a.path == first.path)]

    def _finish(self, plan: Plan, decoded: Path, folder: Path) -> None:
        """Fill the plan's folder, and evaluate it."""
        work, spec, chosen = self._work, self._work.spec, plan.components
        with self._progress.stage("schedules"):
            names = [*spec.scheduler, *(str(fit_spec_from(text).scheduler) for text in spec.fit)]
            fill_samplers(folder / "samplers", plan.scheduler, names, spec.steps)
        with self._progress.stage("plan"):
            compiled = any((folder / "samplers").iterdir())  # none, if the model's scheduler is not a matrix
            plan = replace(assemble(plan, work.source, folder), samplers=Path("samplers") if compiled else None)
            write_plan(plan, folder)
        with self._progress.stage("prove"):
            proof = self._evaluator(decoded).evaluate(read_plan(folder, sealed=False))
        if missed := failed(spec.max_loss, proof):
            raise CheckError(
                f"the images miss the quality bounds ({'; '.join(missed)}), so the plan is not kept. "
                "Try --precision auto, which searches for a mix that passes, or another --max-loss.",
                backend=spec.backend,
            )
        fitted = self._fit(folder) if spec.fit else {}
        write_plan(replace(plan, build=self._metadata(proof) | fitted), folder, sealed=True)
        if spec.precision == "int8":
            for name, component in chosen.items():
                keep_built(work.family.components[name], work.source, spec.backend, component)

    def _fit(self, folder: Path) -> dict[str, Any]:
        spec = self._work.spec
        with self._progress.stage("fit samplers"):
            prompts = None if spec.prompts is None else str(spec.prompts)
            arguments = {"plan": str(folder), "backend": spec.backend, "fits": list(spec.fit), "prompts": prompts}
            result = run_in_subprocess("fitting samplers", "calotype.export.fit.in_plan:fit_in_plan", **arguments)
        return {"fits": dict(result.notes["figures"])}

    def _metadata(self, proof: Mapping[str, Any]) -> dict[str, Any]:
        """Return the "build" entry of plan.json."""
        work, spec = self._work, self._work.spec
        tools, images = tool_versions(spec.backend), work.images("proof")
        portable = EngineOptions.from_words(spec.engine).portable
        gpu = gpu_name() if spec.backend in backends.COMPILED and not portable else None  # the only one that fits
        return {
            "key": work.key,
            "spec": {name: value for name, value in spec.to_json().items() if name != "output"},
            "backend": spec.backend,
            "precision": spec.precision,
            "max_loss": [str(b) for b in spec.max_loss],
            "needs": {spec.backend: tools[spec.backend]},
            "tools": tools,
            "machine": {"platform": platform.platform(), "threads": threads.available(), "gpu": gpu},
            **({"engine": list(spec.engine)} if spec.engine else {}),
            "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._began, 1),
            "estimate": asdict(self._need),
            "proof": {
                **proof,
                "pictures": len(images.prompts),
                "steps": images.steps,
                "height": images.height,
                "width": images.width,
            },
            "table": self._table,
        }
