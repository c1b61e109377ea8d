"""Fuse LoRAs into a model's weights before tracing, for plans that contain them.

The fused weights are entries of the store. The runtime (`calotype.lora.lora`) reads, matches and adds LoRAs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from calotype.errors import SourceError
from calotype.lora.lora import READER, Lora, Shapes, components_in, keys_that_fit, parse_loras, weight_deltas_of
from calotype.plan.family import TEXT_ENCODERS

from ..steps.subprocess_task import Outcome, run_in_subprocess
from ..steps.versions import versions
from ..store.store import fetch, key_of
from .source import Source, read_source, stem_of
from .weight_files import check_safetensors, weight_files

FUSER = 2  # increased when fusing produces other weights


def fuse(source: Source, files: Sequence[str | Path]) -> Source:
    """Return the source with these LoRAs in its weights. The changed networks are folders of the store.

    Raises:
        SourceError: a file is missing, is not a LoRA, or does not fit the model.
    """
    parsed = parse_loras(list(files))
    if parsed and not TEXT_ENCODERS[source.configs["model_index"]["_class_name"]]:
        raise SourceError(f"{source.model} is not a Stable Diffusion model, and takes no LoRA.")
    shapes = {name: _shapes(source.folders[name], stem_of(name)) for name in _networks(source)}
    for lora in parsed:  # checks only the headers: a large file that does not fit is not hashed
        keys_that_fit(lora, shapes)
    loras, idle = [lora for lora in parsed if lora.weight], [lora for lora in parsed if not lora.weight]
    if idle:  # they must fit as well, but are not saved
        _fuse(idle, source, Path())
    return _fused(source, loras) if loras else source


def _fused(source: Source, loras: Sequence[Lora]) -> Source:
    names = _networks(source)
    key = key_of(
        {
            "fused": {name: [source.digests[name], source.configs[name]] for name in names},
            "loras": [[lora.digest, lora.weight] for lora in loras],
            "tools": versions(),
            "fuser": [FUSER, READER],
        }
    )

    def make(empty: Path) -> Mapping[str, Any]:
        done = _fuse(loras, source, empty)
        return {"changed": done.value, "peak_bytes": done.peak_bytes}

    folder, notes = fetch(
        key, make, label={"component": ", ".join(names), "kind": "fused LoRAs", "model": source.model}
    )
    changed = {name: folder / name for name in notes["changed"]}
    digests = {name: key_of({key: name}) for name in changed}
    return replace(source, folders={**source.folders, **changed}, digests={**source.digests, **digests})


def _fuse(loras: Sequence[Lora], source: Source, out: Path) -> Outcome:
    model = str(source.folder)  # not `source.model`, which may be a hub id or a checkpoint
    files = [[str(lora.path), lora.weight] for lora in loras]
    return run_in_subprocess(
        "fusing the LoRAs", "calotype.export.sources.lora:fuse_into", out=str(out), model=model, loras=files
    )


def _shapes(folder: Path, stem: str) -> Shapes:
    """Return layer -> shape of its weight, embeddings included, from the headers of a network's files."""
    return {
        name.removeprefix("text_model.").removesuffix(".weight"): tuple(shape)
        for file in weight_files(folder, stem)
        for name, shape in check_safetensors(file).shapes.items()
        if name.endswith(".weight") and len(shape) > 1
    }


def _networks(source: Source) -> list[str]:
    return [*TEXT_ENCODERS[source.configs["model_index"]["_class_name"]], "unet"]


def fuse_into(*, out: str, model: str, loras: Sequence[tuple[str, float]]) -> list[str]:
    """Save the networks that the LoRAs change into `out`, in a child process; return their names."""
    from calotype.backends.torch.modules import load_module
    from calotype.backends.torch.weights import ModuleWeights

    source, read = read_source(model), parse_loras([(path, weight) for path, weight in loras])
    needed = {"unet"}.union(*map(components_in, read))  # the U-Net shows the model's family
    modules: dict[str, Any] = {n: load_module(n, source.folders[n]) for n in _networks(source) if n in needed}
    weights = {name: ModuleWeights.of(module) for name, module in modules.items()}
    deltas = weight_deltas_of(read, {name: each.shapes() for name, each in weights.items()})
    for name, added in deltas.items():
        weights[name].update_weights(added)
        modules[name].model.save_pretrained(Path(out) / name)
    return sorted(deltas)
