"""The work of a case: the model's files, the job of every worker, and the operations of an image."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from calotype.errors import InputError
from calotype.export.sources.configs import MODELS
from calotype.export.sources.source import Source, read_source
from calotype.export.store.gc import CONVERTED
from calotype.files.paths import write_atomic
from calotype.plan.family import family_of
from calotype.plan.networks import controlnets_of
from calotype.plan.plan import is_plan
from calotype.sampling.cache import sampler_for
from calotype.system.memory import peak_bytes

from ..suite import models
from ..suite.cases import Case, prompts_of
from .results_row import Workload

_WEIGHT_COPIES = 3  # float32 copies of the weights during loading; an estimate until the peak is known
_BASE_BYTES = 1 << 30


def source_of(case: Case) -> Source:
    """Return the model's files. Full-size models with random weights are created at first use. Raises `SourceError`."""
    model = str(models.model_folder(case.model)) if case.model in MODELS else case.model
    if is_plan(model):
        raise InputError(
            f"cannot compare with {model}: it is a plan and has no original weights. Name the model of the plan."
        )
    nets = [models.controlnet_folder(case.model) if c == "random" else Path(c) for c in case.controlnets]
    return replace(read_source(model, nets), model=case.model)


def job_for(case: Case, source: Source, *, threads: int) -> dict[str, Any]:
    """Return the job that every worker gets (see peers/serve.py). A contender adds its plan, precision and settings."""
    spec, _ = sampler_for(_sampler(case), source.configs["scheduler"], case.steps)
    nets = controlnets_of(source.folders)
    cache = CONVERTED.root / source.fingerprint[:16]
    cache.mkdir(parents=True, exist_ok=True)
    CONVERTED.hold(cache.name)
    return {
        **{"model": str(source.folder), "plan": None, "backend": "eager", "precision": "fp32", "settings": {}},
        **{name: getattr(case, name) for name in ("height", "width", "batch", "steps", "guidance", "device")},
        "scheduler": {"name": spec.name, "class": spec.class_name, "config": dict(spec.config)},
        "controlnets": [str(source.folders[name]) for name in nets],
        "control_images": [str(_control_image(case, cache, i)) for i in range(len(nets))],
        "threads": threads,
        "cache": str(cache),
    }


def _sampler(case: Case) -> str | None:
    return None if case.sampler == "own" else case.sampler


def _control_image(case: Case, cache: Path, number: int) -> Path:
    drawn = models.control_image(height=case.height, width=case.width, seed=number)
    path = cache / f"control-{case.width}x{case.height}-{number}.npy"
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(drawn))
    write_atomic(path, buffer.getvalue())
    return path


def need_bytes(case: Case, source: Source) -> int:
    """Estimate the memory of a contender's process."""
    weights = 4 * sum(source.weights_count(name) for name in source.folders)
    loads = family_of(source.configs).loads
    working = peak_bytes(loads, batch=case.batch, height=case.height, width=case.width, guided=case.guided)
    return _BASE_BYTES + _WEIGHT_COPIES * (weights + working)


def workload_of(case: Case, source: Source) -> Workload:
    """Count the operations of the first batch: the text encoder and the decoder once, the U-Net at every call."""
    from ..suite.flops import component_flops  # imports torch

    calls = sampler_for(_sampler(case), source.configs["scheduler"], case.steps)[1].calls
    encodes_empty_text = (
        case.guided and not family_of(source.configs).prompting.zero_negative
    )  # the empty text needs a run too
    texts = len({*prompts_of(case)[: case.batch]}) + encodes_empty_text
    seen = case.batch * (2 if case.guided else 1)
    sizes = {"height": case.height, "width": case.width}
    flops: dict[str, int] = {}
    for name in source.folders:
        part = "vae_decoder" if name == "vae" else name
        times, batch = (1, case.batch) if name == "vae" else (1, texts) if "text" in name else (calls, seen)
        component = "controlnet" if name.startswith("controlnet") else part
        flops[component] = flops.get(component, 0) + times * component_flops(source, part, batch=batch, **sizes)
    return Workload(calls=calls, flops=flops)
