"""What a case's work is: the model's files, the job that every worker is given, and the operations of a picture."""

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
from .results_row import Work

_WEIGHT_COPIES = 3  # of float32 weights that a contender may hold while it loads: an estimate until it is measured
_BASE_BYTES = 1 << 30


def source_of(case: Case) -> Source:
    """The model's files; full-size ones with random weights are made at first use. Raises `SourceError`."""
    model = str(models.model_folder(case.model)) if case.model in MODELS else case.model
    if is_plan(model):
        raise InputError(
            f"{model} is a plan, which has no weights to compare with; name the model that it was made of."
        )
    nets = [models.controlnet_folder(case.model) if c == "random" else Path(c) for c in case.controlnets]
    return replace(read_source(model, nets), model=case.model)


def job_of(case: Case, source: Source, *, threads: int) -> dict[str, Any]:
    """What every worker is told (see peers/serve.py); a contender adds its own plan, precision and settings."""
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
    """An estimate of what a contender's process may hold."""
    weights = 4 * sum(source.weights_count(name) for name in source.folders)
    loads = family_of(source.configs).loads
    working = peak_bytes(loads, batch=case.batch, height=case.height, width=case.width, guided=case.guided)
    return _BASE_BYTES + _WEIGHT_COPIES * (weights + working)


def work_of(case: Case, source: Source) -> Work:
    """The operations of the first batch: text once, the U-Net at every call of the sampler, the decoder once."""
    from ..suite.flops import component_flops  # imports torch

    calls = sampler_for(_sampler(case), source.configs["scheduler"], case.steps)[1].calls
    unsaid = case.guided and not family_of(source.configs).prompting.zero_negative  # the empty text is encoded, too
    texts = len({*prompts_of(case)[: case.batch]}) + unsaid
    seen = case.batch * (2 if case.guided else 1)
    sizes = {"height": case.height, "width": case.width}
    found: dict[str, int] = {}
    for name in source.folders:
        part = "vae_decoder" if name == "vae" else name
        times, batch = (1, case.batch) if name == "vae" else (1, texts) if "text" in name else (calls, seen)
        whole = "controlnet" if name.startswith("controlnet") else part
        found[whole] = found.get(whole, 0) + times * component_flops(source, part, batch=batch, **sizes)
    return Work(calls=calls, flops=found)
