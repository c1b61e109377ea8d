"""The work of a case: the model's files, the job of every worker, the operations of an image, the reference images."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from calotype.errors import BackendError, InputError
from calotype.export.sources.configs import MODELS
from calotype.export.sources.source import Source, read_source
from calotype.export.steps.versions import versions
from calotype.export.store.gc import CONVERTED
from calotype.export.store.store import fetch, key_of
from calotype.files.paths import write_atomic
from calotype.plan.family import family_of
from calotype.plan.networks import controlnets_of
from calotype.plan.plan import is_plan
from calotype.sampling.cache import sampler_for
from calotype.system.memory import peak_bytes

from ..suite import models
from ..suite.cases import Case, prompts_of
from .contender_process import BenchmarkCall
from .worker import Worker, WorkerError

_WEIGHT_COPIES = 3  # float32 copies of the weights during loading; an estimate until the peak is known
_BASE_BYTES = 1 << 30
_HERE = Path(__file__).resolve().parent.parent
OURS, DIFFUSERS = _HERE / "run" / "ours.py", _HERE / "peers" / "diffusers" / "peer.py"
_FIRST_SEED = 100
# What does not change the images, or is part of the model's fingerprint.
_NOT_IN_KEY = ("cache", "judged", "threads", "model", "controlnets", "control_images", "plan", "backend")

ShowLine = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The settings of a run. `output` is the folder for the record and the images."""

    preset: str
    command: str
    output: Path
    threads: int
    timeout_s: float = 1800.0  # for each request to a worker; compilers take minutes
    clip_model: Path | None = None
    show: ShowLine = print


@dataclass(frozen=True, kw_only=True)
class CaseContext:
    """What all contenders of a case share."""

    case: Case
    settings: RunSettings
    source: Source
    job: Mapping[str, Any]  # see peers/serve.py; a contender adds its plan, precision and settings
    calls: int = 0  # of the U-Net for an image (or batch)
    flops: Mapping[str, int] = field(
        default_factory=dict
    )  # component -> operations of all its calls for an image (or batch)


def context_of(case: Case, settings: RunSettings) -> CaseContext:
    """Read the model of a case. Raises `SourceError`."""
    source = source_of(case)
    scheduler, sampler = sampler_for(
        None if case.sampler == "own" else case.sampler, source.configs["scheduler"], case.steps
    )
    nets = controlnets_of(source.folders)
    cache = CONVERTED.root / source.fingerprint[:16]
    cache.mkdir(parents=True, exist_ok=True)
    CONVERTED.hold(cache.name)
    job = {
        **{"model": str(source.folder), "plan": None, "backend": "eager", "precision": "fp32", "settings": {}},
        **{name: getattr(case, name) for name in ("height", "width", "batch", "steps", "guidance", "device")},
        "scheduler": {"name": scheduler.name, "class": scheduler.class_name, "config": dict(scheduler.config)},
        "controlnets": [str(source.folders[name]) for name in nets],
        "control_images": [str(_control_image(case, cache, i)) for i in range(len(nets))],
        "threads": settings.threads,
        "cache": str(cache),
        "judged": case.judged,
    }
    flops = flops_of(case, source, sampler.calls)
    return CaseContext(case=case, settings=settings, source=source, job=job, calls=sampler.calls, flops=flops)


def source_of(case: Case) -> Source:
    """Return the model's files. Full-size models with random weights are created at first use. Raises `SourceError`."""
    model = str(models.model_folder(case.model)) if case.model in MODELS else case.model
    if is_plan(model):
        raise InputError(
            f"cannot compare with {model}: it is a plan and has no original weights. Name the model of the plan.",
            argument="model",
            got=model,
        )
    nets = [models.controlnet_folder(case.model) if c == "random" else Path(c) for c in case.controlnets]
    return replace(read_source(model, nets), model=case.model)


def _control_image(case: Case, cache: Path, number: int) -> Path:
    path, buffer = cache / f"control-{case.width}x{case.height}-{number}.npy", io.BytesIO()
    np.save(buffer, np.asarray(models.control_image(height=case.height, width=case.width, seed=number)))
    write_atomic(path, buffer.getvalue())
    return path


def need_bytes(case: Case, source: Source) -> int:
    """Estimate the memory of a contender's process."""
    weights = 4 * sum(source.weights_count(name) for name in source.folders)
    loads = family_of(source.configs).loads
    working = peak_bytes(loads, batch=case.batch, height=case.height, width=case.width, guided=case.guided)
    return _BASE_BYTES + _WEIGHT_COPIES * (weights + working)


def flops_of(case: Case, source: Source, calls: int) -> dict[str, int]:
    """Count the operations of the first batch: the text encoder and the decoder once, the U-Net at every call."""
    from ..suite.flops import component_flops  # imports torch

    texts = len({*prompts_of(case)[: case.batch]})
    if case.guided and not family_of(source.configs).prompting.zero_negative:
        texts += 1  # the empty text needs a run too
    flops: dict[str, int] = {}
    for name in source.folders:
        part, times, batch = name, calls, case.batch * (2 if case.guided else 1)
        if name == "vae":
            part, times, batch = "vae_decoder", 1, case.batch
        elif "text" in name:
            times, batch = 1, texts
        component = "controlnet" if name.startswith("controlnet") else part
        once = component_flops(source, part, batch=batch, height=case.height, width=case.width)
        flops[component] = flops.get(component, 0) + times * once
    return flops


def reference_calls(context: CaseContext) -> list[BenchmarkCall]:
    """Return the calls of a case in batches, each with the images of float32 eager. Raises `BackendError`.

    diffusers generates the images once, and they are kept. A fault of ours therefore affects only our own rows.
    """
    case, texts = context.case, prompts_of(context.case)
    starts = range(0, max(len(texts), 1), case.batch)
    prompts = [tuple(texts[(start + i) % len(texts)] for i in range(case.batch)) for start in starts]
    seeds = [tuple(_FIRST_SEED + start + i for i in range(case.batch)) for start in starts]
    # A case with only fake contenders (a test of the suite) has a fake without faults as its reference.
    fake = all(contender.backend == "fake" for contender in case.contenders)
    peer = OURS if fake else DIFFUSERS
    job = {**context.job, "backend": "fake" if fake else "eager"}

    def make(folder: Path) -> Mapping[str, Any]:
        try:
            with closing(Worker(Path(sys.executable), peer, threads=context.settings.threads)) as worker:
                worker.ask({"op": "load", "job": job}, context.settings.timeout_s)
                for i, call in enumerate(zip(prompts, seeds, strict=True)):
                    request = {"op": "generate", "prompts": call[0], "negative": None, "seeds": call[1]}
                    worker.ask({**request, "out": str(folder / f"{i}.npy")}, context.settings.timeout_s)
        except WorkerError as failed:
            raise BackendError(f"cannot generate the reference images with float32 eager: {failed}") from None
        return {}

    kept = {name: value for name, value in job.items() if name not in _NOT_IN_KEY}
    request = [peer.read_text(), context.source.fingerprint, kept, [prompts, seeds], versions()]
    folder, _ = fetch(key_of({"reference": request}), make, label={"kind": "reference images", "case": case.id})
    return [
        BenchmarkCall(prompts=p, seeds=s, expected=np.load(folder / f"{i}.npy"), trained=case.judged)
        for i, (p, s) in enumerate(zip(prompts, seeds, strict=True))
    ]
