"""`calotype build`: a model becomes a plan, component by component, each proved before it is kept.

The order of the work, and the key under which a finished plan is found again. What is done at each stage is in the
modules of its name: tracing, recording, precision, tuning, proving, assembly.
"""

from __future__ import annotations

import datetime
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from calotype import backends
from calotype.errors import BuildError, CheckError, SourceError
from calotype.files import locks
from calotype.files.digest import file_digest
from calotype.plan.family import family_of
from calotype.plan.plan import Plan, is_plan, read_plan, write_plan
from calotype.sampling.schedulers import spec_from
from calotype.system import threads
from calotype.system.nvidia import gpu_name

from ..onnx import check
from ..onnx.capture_step import record_all
from ..onnx.trace_step import trace_key, traced
from ..precision.variants import check_precision, half, small_weights
from ..quality.bounds import failed
from ..quality.metrics import require
from ..quality.prompts import prompts_for
from ..sources.lora import fuse
from ..sources.source import Source, read_source
from ..sources.textual_inversion import add_embeddings
from ..steps.progress import Progress, Show, quietly
from ..steps.subprocess_task import run_in_subprocess
from ..steps.versions import tool_versions
from ..store.store import has, key_of, root
from ..tensorrt.engines import check_words, engines_for, modest
from ..tensorrt.options import EngineOptions
from .assembly import assemble, check_output, staging
from .preflight import Need, check_room, picture_size
from .prepare import plan_of, reference
from .samplers_step import schedules
from .spec import BuildSpec
from .tuning import Judging, part_of, tuned
from .work import TUNED_PRECISIONS, Work, of_graphs, opens_float32, stages_of, weights_of

BUILDER = 2  # raised when the same spec would make another plan


@dataclass(frozen=True, kw_only=True)
class Built:
    """The plan, and whether there was anything to do."""

    plan: Plan
    fresh: bool


def build(spec: BuildSpec, show: Callable[[], AbstractContextManager[Show]] = quietly) -> Built:
    """Build the plan, or find that it is there. `show` is entered when there is work to show.

    Raises `InputError` for what was asked, `SourceError` for the model, `BuildError` and `CheckError` for the work.
    """
    check_backend(spec)
    if is_plan(spec.model):
        raise BuildError(f"{spec.model} is a plan already; a plan is built from a model, which has its weights.")
    check_output(spec.output)
    work = _prepared(spec)
    if (there := _there(work)) is not None:
        return Built(plan=there, fresh=False)
    need = check_room(spec, work.family.profile, weights_of(work), work.family.loads)
    lock = root() / f"{key_of({'plan': str(spec.output.absolute())})}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with locks.exclusive(lock, wait_for=f"the plan {spec.output}"):
        if (there := _there(work)) is not None:  # another process may have built it while we waited
            return Built(plan=there, fresh=False)
        with show() as shown, tempfile.TemporaryDirectory(prefix="calotype-build-") as scratch:
            return Built(plan=_Build(work, Progress(stages_of(work), shown), Path(scratch), need).run(), fresh=True)


def check_backend(spec: BuildSpec) -> None:
    """`BuildError` where this machine, or this version, cannot build for the backend in the precision asked for."""
    check_words(spec.backend, spec.engine)
    if spec.weights and backends.form_of(spec.backend) == "diffusers":
        raise BuildError(f"--weights {spec.weights} is of graphs, which {spec.backend} does not open.")
    reason = backends.unavailable(spec.backend)
    if reason:
        raise BuildError(
            f"a plan is proved on the backend that it is built for, and {spec.backend} cannot run here: {reason}."
        )
    check_precision(spec.backend, spec.precision)


def _prepared(spec: BuildSpec) -> Work:
    source = read_source(spec.model, spec.controlnet, spec.vae, offline=spec.offline)
    source = add_embeddings(fuse(source, spec.lora), spec.textual_inversion)
    family = family_of(source.configs)
    if not family.prompting.states:
        raise BuildError(
            f"{spec.model} paints without text, and builds are proved on pictures from text: no plan can be made of it "
            "in this version. Load it as it is: its networks are traced and checked at first use."
        )
    usual = modest(family.profile) if spec.backend in backends.COMPILED else family.profile
    said = {name: getattr(spec, name) or getattr(usual, name) for name in ("batch", "height", "width")}
    profile = family.profile.narrowed(**said)
    for name in spec.scheduler:
        spec_from(name, source.configs["scheduler"])  # an unknown name is told now, not after the work
    count, _ = spec.proof_counts
    prompts = prompts_for(
        demo=_is_demo(source), file=spec.prompts, calibration=spec.calibration if spec.gated else 0, held_out=count
    )
    require([b.metric for b in spec.max_loss], judged=prompts.judged, clip_model=spec.clip_model)
    key = key_of(
        {
            "builder": BUILDER,
            "spec": {k: v for k, v in spec.to_json().items() if k not in ("output", "model", "offline")},
            "source": source.fingerprint,
            "prompts": asdict(prompts),
            "tools": tool_versions(spec.backend),
            "threads": threads.available() if spec.gated else None,  # the choice was made by timing
        }
    )
    return Work(spec=spec, source=source, family=replace(family, profile=profile), prompts=prompts, key=key)


def _is_demo(source: Source) -> bool:
    """Does the model know the demonstration model's words, and not the world's?"""
    from ..sources.source import find

    ours = find("demo") / "tokenizer"
    files = sorted(p.name for p in ours.iterdir() if p.is_file())
    theirs = source.folder / "tokenizer"
    return all((theirs / n).is_file() and file_digest(theirs / n) == file_digest(ours / n) for n in files)


def _there(work: Work) -> Plan | None:
    """The plan that this build would make, whole; None where there is none."""
    if not is_plan(work.spec.output):
        return None
    try:
        plan = read_plan(work.spec.output)
    except SourceError:  # damaged, or of another version: made again
        return None
    return plan if plan.build.get("key") == work.key else None


class _Build:
    """One build under way."""

    def __init__(self, work: Work, progress: Progress, scratch: Path, need: Need) -> None:
        self._work, self._progress, self._scratch = work, progress, scratch
        self._need = need
        self._began = time.monotonic()

    def run(self) -> Plan:
        """All stages; the finished plan. Whatever goes wrong, nothing is left where the plan should be."""
        work = self._work
        bare = plan_of(work.source, work.family, {c.name: reference(c, work.source) for c in self._components()})
        plan = self._traced(bare)
        recorded = {"proof": self._record(bare, "proof")}
        table: list[Mapping[str, Any]] = []
        if work.spec.gated:
            recorded["calibration"] = self._record(bare, "calibration")
            plan, table = self._lowered(plan, recorded)
        plan = self._checked(plan, recorded["proof"])
        with staging(work.spec.output) as folder:
            self._finish(plan, recorded["proof"]["vae_decoder"], table, folder)
        return read_plan(work.spec.output)

    def _components(self) -> list[Any]:
        return list(self._work.family.components.values())

    def _traced(self, bare: Plan) -> Plan:
        """The plan with every component's float32: an ONNX graph, before it an engine where the backend opens it so."""
        work, components = self._work, {}
        if not of_graphs(work.spec):
            return bare
        engines = engines_for(work.spec.backend, work.family.profile, work.spec.engine, self._progress.step)
        for component in self._components():
            with self._progress.stage(f"trace {component.name}", cached=has(trace_key(component, work.source))):
                planned = bare.components[component.name]
                artifact = traced(component, work.source, work.family.profile)
            made = [artifact]
            if engines is not None and opens_float32(work.spec):
                with self._progress.stage(f"engine {component.name}"):
                    made = [engines.of(planned, artifact), artifact]
            components[component.name] = planned.with_artifacts(*made)
        return replace(bare, components=components)

    def _record(self, bare: Plan, what: str) -> dict[str, Path]:
        plan = replace(bare, profile=replace(bare.profile, batch=replace(bare.profile.batch, min=1, opt=1)))
        return record_all(plan, self._work.source, self._work.pictures(what), what, self._progress.stage)

    def _lowered(self, plan: Plan, recorded: Mapping[str, Mapping[str, Path]]) -> tuple[Plan, list[Any]]:
        """The plan in the precision asked for, and the table of what was tried."""
        spec = self._work.spec
        if spec.precision in TUNED_PRECISIONS:
            judging = self._judging(recorded["proof"]["vae_decoder"])
            return tuned(plan, recorded["calibration"], judging, self._progress)
        components = {}
        for name, component in plan.components.items():
            with self._progress.stage(f"lower {name}"):
                part = part_of(spec, plan, name, recorded["calibration"][name], self._progress.step)
                made = small_weights(part, spec.weights) if spec.weights else half(part, spec.precision, spec.backend)
                components[name] = component.with_artifacts(made, *component.artifacts)
        return replace(plan, components=components), []

    def _judging(self, reference_pictures: Path) -> Judging:
        return Judging(spec=self._work.spec, pictures=self._work.pictures("proof"), reference=reference_pictures)

    def _checked(self, plan: Plan, recorded: Mapping[str, Path]) -> Plan:
        """Each component on its backend, over what real runs gave it: the figures go into the plan."""
        write_plan(plan, self._scratch)
        components = {}
        for name, component in plan.components.items():
            with self._progress.stage(f"check {name}"):
                checking = run_in_subprocess(
                    f"checking the {name}",
                    "calotype.export.onnx.check:check_planned",
                    plan=str(self._scratch),
                    name=name,
                    backend=self._work.spec.backend,
                    reference=str(recorded[name]),
                )
            first, *others = component.artifacts
            found = {**checking.value, "peak_bytes": checking.peak_bytes}
            if not self._work.spec.gated and found["max_relative_error"] > check.TOLERANCE:
                raise CheckError(
                    f"the {name} on {self._work.spec.backend} differs from eager float32 by "
                    f"{found['max_relative_error']:.1e} of its largest value over {found['calls']} calls of a real run "
                    f"(allowed: {check.TOLERANCE:.0e}), so the plan is not kept"
                )
            kept = others if self._work.spec.fallback else [a for a in others if a.path == first.path]
            figures = {"backend": self._work.spec.backend, "max_relative_error": found["max_relative_error"]}
            traced_error = {"traced_error": first.check.get("max_relative_error")}
            first = replace(first, check={**first.check, **traced_error, **figures, "real_inputs": found})
            components[name] = component.with_artifacts(first, *kept)
        return replace(plan, components=components)

    def _finish(self, plan: Plan, reference_pictures: Path, table: list[Any], folder: Path) -> None:
        work, spec = self._work, self._work.spec
        with self._progress.stage("schedules"):
            schedules(folder / "samplers", work.source.configs["scheduler"], spec.scheduler, spec.steps)
        with self._progress.stage("plan"):
            plan = replace(assemble(plan, work.source, folder), samplers=Path("samplers"))
            write_plan(plan, folder)
        with self._progress.stage("prove"):
            proof = self._judging(reference_pictures).judge(read_plan(folder, sealed=False))
        missed = failed(spec.max_loss, proof)
        if missed:
            raise CheckError(
                f"the pictures miss the gate ({'; '.join(missed)}), so the plan is not kept; take --precision auto, "
                "which finds a mix that passes, or another --max-loss."
            )
        plan = replace(plan, build=self._told(proof, table))
        write_plan(plan, folder, sealed=True)

    def _told(self, proof: Mapping[str, Any], table: list[Any]) -> dict[str, Any]:
        """What the plan says of its making."""
        work, spec = self._work, self._work.spec
        tools = tool_versions(spec.backend)
        height, width = picture_size(spec, work.family.profile)
        count, steps = spec.proof_counts
        return {
            "key": work.key,
            "spec": {name: value for name, value in spec.to_json().items() if name != "output"},
            "backend": spec.backend,
            "precision": spec.precision,
            "max_loss": [str(b) for b in spec.max_loss],
            "needs": {spec.backend: tools[spec.backend]},
            "tools": tools,
            "machine": {"platform": platform.platform(), "threads": threads.available(), "gpu": _bound_to(spec)},
            **({"engine": list(spec.engine)} if spec.engine else {}),
            "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._began, 1),
            "estimate": asdict(self._need),
            "proof": {**proof, "pictures": count, "steps": steps, "height": height, "width": width},
            "table": table,
        }


def _bound_to(spec: BuildSpec) -> str | None:
    """The GPU that alone can open what was compiled; None where others can as well."""
    portable = EngineOptions.from_words(spec.engine).portable
    return gpu_name() if spec.backend in backends.COMPILED and not portable else None
