"""Fuse LoRAs into a model's weights before tracing, for plans that contain them.

The fused weights are entries of the store. The runtime (`calotype.lora.lora`) reads, matches and adds LoRAs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from calotype.errors import SourceError
from calotype.lora.lora import READER, Shapes, components_in, matching_keys, parse_loras, weight_deltas_of

from ..steps.stored_step import StoredStep
from ..steps.subprocess_task import run_in_subprocess
from ..steps.versions import versions
from ..store.store import key_of
from .parts import stem_of
from .source import Source
from .weight_files import check_safetensors, weight_files

FUSER = 2  # increased when fusing produces other weights


def fuse(source: Source, files: Sequence[str | Path]) -> Source:
    """Return the source with these LoRAs in its weights. The changed networks are folders of the store.

    Raises:
        SourceError: a file is missing, is not a LoRA, or does not fit the model.
    """
    parsed, names = parse_loras(list(files)), _networks(source)
    if parsed and len(names) == 1:
        message = f"{source.model} is not a Stable Diffusion model, and takes no LoRA."
        raise SourceError(message, path=source.folder)
    shapes = {name: _shapes(source.folders[name], stem_of(name)) for name in names}
    for lora in parsed:  # checks only the headers: a large file that does not fit is not hashed
        matching_keys(lora, shapes)
    task, function = "fusing the LoRAs", f"{__name__}:fuse_into"
    folders = {name: str(source.folders[name]) for name in names}
    idle = [[str(lora.path), lora.weight] for lora in parsed if not lora.weight]
    if idle:  # they must fit as well, but are not saved
        run_in_subprocess(task, function, out=".", folders=folders, loras=idle)
    loras = [lora for lora in parsed if lora.weight]
    if not loras:
        return source
    step = StoredStep(
        depends_on={
            "fused": {name: [source.digests[name], source.configs[name]] for name in names},
            "loras": [[lora.digest, lora.weight] for lora in loras],
            "tools": versions(),
            "fuser": [FUSER, READER],
        },
        label={"component": ", ".join(names), "kind": "fused LoRAs", "model": source.model},
    )
    files_with_weights = [[str(lora.path), lora.weight] for lora in loras]
    stored = step.run_in_child(task, function, folders=folders, loras=files_with_weights)
    changed = {name: stored.folder / name for name in stored.notes["changed"]}
    digests = {name: key_of({stored.folder.name: name}) for name in changed}
    return replace(
        source,
        folders={**source.folders, **changed},
        digests={**source.digests, **digests},
        generated=source.generated | set(changed),
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
    return [*source.tokenizers, "unet"]


def fuse_into(*, out: str, folders: Mapping[str, str], loras: Sequence[tuple[str, float]]) -> dict[str, list[str]]:
    """Save the networks that the LoRAs change into `out`, in a child process; return their names as "changed"."""
    from calotype.backends.torch.modules import load_module
    from calotype.backends.torch.weights import ModuleWeights

    read = parse_loras([(path, weight) for path, weight in loras])
    needed = {"unet"}.union(*map(components_in, read))  # the U-Net shows the model's family
    modules: dict[str, Any] = {name: load_module(name, Path(f)) for name, f in folders.items() if name in needed}
    weights = {name: ModuleWeights.of(module) for name, module in modules.items()}
    deltas = weight_deltas_of(read, {name: each.shapes() for name, each in weights.items()})
    for name, added in deltas.items():
        weights[name].update_weights(added)
        modules[name].model.save_pretrained(Path(out) / name)
    return {"changed": sorted(deltas)}
