"""Sampler matrices as .npz files, and those stored in a plan, with which it generates images without diffusers.

    samplers/index.json     {"version": 1, "schedulers": [{"name", "key", "file", "sha256", "steps", "image_steps",
                            "diffusers"}, ...]}
    samplers/NAME-KEY.npz   timesteps.N, rows.N and preview.N for every step count N. Some step counts also have the
                            matrices that start from an image: rows.N.S, clean.N.S, kept.N.S, ... skip the first S
                            steps, and rows.N.noise, ... start from noise and use a mask. The cache's files have one
                            matrix, without a suffix.

Look-ups use the `key` of a scheduler's spec. It depends on the class and its configuration, and not on the version of
diffusers, because a machine that only generates images need not have diffusers. This file compiles nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SamplerError, SourceError
from ..errors.schema import SchemaError, integer, list_of, record, text
from ..files.json_file import read_json
from .matrix import SamplerMatrix
from .schedule_range import FULL_SCHEDULE, ScheduleRange
from .schedulers import SchedulerSpec

INDEX = "index.json"
VERSION = 1
_MAX_BYTES = 1 << 30  # one scheduler's matrices, unpacked
# Attribute of a matrix -> name of its array. Only matrices that start from an image have the last two.
_ARRAYS = {"timesteps": "timesteps", "rows": "rows", "preview": "preview"}
_ARRAYS |= {"image_coefficients": "clean", "masked_rows": "kept"}
_STEPS = list_of(integer(1, 1 << 20))
_ENTRY = {**dict.fromkeys(("name", "key", "file", "sha256", "diffusers"), text()), "steps": _STEPS}
_LISTS = ("steps", "image_steps")
_OLD = "pictures"  # the name of `image_steps` in plans of November 2026
_OPTIONAL = {"image_steps": _STEPS, _OLD: _STEPS}
_INDEX = record({"version": integer(0, 1 << 20), "schedulers": list_of(record(_ENTRY | _OPTIONAL, optional=_OPTIONAL))})


def to_bytes(matrices: Mapping[str, SamplerMatrix], *, compressed: bool = False) -> bytes:
    """Return matrices as a .npz file. The keys are the suffixes of the arrays' names."""
    file = io.BytesIO()
    arrays = {name + suffix: getattr(m, field) for suffix, m in matrices.items() for field, name in _ARRAYS.items()}
    save = np.savez_compressed if compressed else np.savez
    save(file, allow_pickle=False, **{name: array for name, array in arrays.items() if array is not None})
    return file.getvalue()


def from_bytes(data: bytes, *, name: str, suffix: str = "") -> SamplerMatrix:
    """Read one of the matrices that `to_bytes` wrote. `name` is for reports. Raises `SamplerError` if it is damaged."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            if sum(entry.file_size for entry in packed.infolist()) > _MAX_BYTES:
                raise ValueError(f"it unpacks to more than {_MAX_BYTES} bytes")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            stored = {field: stem + suffix for field, stem in _ARRAYS.items()}
            fields: dict[str, Any] = {field: arrays[key] for field, key in stored.items() if key in arrays}
            return SamplerMatrix(name=name, **fields)
    except Exception as error:  # for corrupt bytes numpy and zipfile raise many types
        raise SamplerError(f"the sampler matrix of {name} is damaged ({error})", scheduler=name) from None


@dataclass(frozen=True, kw_only=True)
class StoredScheduler:
    """One entry of the index. `diffusers` is the version of diffusers that compiled it."""

    name: str
    key: str
    file: str
    sha256: str
    steps: tuple[int, ...]
    diffusers: str
    image_steps: tuple[int, ...] = ()  # the step counts that also have matrices starting from an image

    def __str__(self) -> str:
        from_images = f" (from images: {_ranges(self.image_steps)})" if self.image_steps else ""
        return f"{self.name} in {_ranges(self.steps)} steps{from_images}"


def read_index(folder: Path) -> tuple[StoredScheduler, ...]:
    """Return the entries of a plan's `samplers` folder, none without an index. `SamplerError` if it is invalid."""
    if not (folder / INDEX).exists():
        return ()
    try:
        data = read_json(folder / INDEX, "it lists the plan's samplers")
        if data.get("version") != VERSION:
            raise SamplerError(f"Cannot read {folder}: got version {data.get('version')!r:.20}; expected {VERSION}.")
        _INDEX(data, "")
    except (SourceError, SchemaError) as error:
        raise SamplerError(f"Cannot read the plan's sampler index {folder / INDEX}: {error}.") from None
    entries = [{"image_steps": e.pop(_OLD, ())} | e for e in data["schedulers"]]
    return tuple(StoredScheduler(**e | {n: tuple(e[n]) for n in _LISTS}) for e in entries)


def _suffix(steps: int, schedule_range: ScheduleRange) -> str | None:
    """Return the suffix of the arrays' names, or None if plans do not store this range."""
    if schedule_range.begin is not None or schedule_range.end is not None or schedule_range.is_custom:
        return None
    if schedule_range.origin == "image":
        return f".{steps}.{schedule_range.skipped}"
    return f".{steps}.noise" if schedule_range.preserves_unmasked else f".{steps}"


def image_schedule_ranges(steps: int) -> tuple[ScheduleRange, ...]:
    """Return every range of `steps` that starts from an image. Matrices for masks also work without a mask."""
    from_image = (ScheduleRange(origin="image", skipped=skipped, preserves_unmasked=True) for skipped in range(steps))
    return (*from_image, ScheduleRange(origin="noise", preserves_unmasked=True))


def find_matrix(
    folder: Path, spec: SchedulerSpec, steps: int, schedule_range: ScheduleRange = FULL_SCHEDULE
) -> SamplerMatrix | None:
    """Return a scheduler's stored matrix, or None if the plan does not have it. `SamplerError` if it is corrupt."""
    if spec.by_hand:
        return None
    key, suffix = spec.key(), _suffix(steps, schedule_range)
    entry = next((e for e in read_index(folder) if e.key == key), None)
    if entry is None or suffix is None:
        return None
    if steps not in (entry.image_steps if schedule_range.takes_latents else entry.steps):
        return None
    path = folder / Path(entry.file).name  # a plan may be untrusted: read nothing outside its folder
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise ValueError("its SHA-256 differs")
        return from_bytes(data, name=spec.name, suffix=suffix)
    except (OSError, ValueError) as error:
        message = f"Cannot read the plan's samplers: {path} is damaged ({error}). Build it again."
        raise SamplerError(message, scheduler=spec.name, steps=steps) from None


def write_matrices(
    folder: Path,
    spec: SchedulerSpec,
    matrices: Mapping[int, SamplerMatrix],
    diffusers: str,
    from_images: Mapping[int, Mapping[ScheduleRange, SamplerMatrix]] | None = None,
) -> StoredScheduler:
    """Add a scheduler to a `samplers` folder, or replace it.

    Args:
        folder: The `samplers` folder, created if missing.
        spec: The scheduler.
        matrices: Step count -> matrix.
        diffusers: The version of diffusers that compiled the matrices.
        from_images: Step count -> the ranges of `image_schedule_ranges` -> their matrices.
    """
    if not matrices or spec.by_hand:
        message = f"Cannot store {spec.name}: it has no matrices, or only the scheduler object describes it."
        raise SamplerError(message, scheduler=spec.name)
    folder.mkdir(parents=True, exist_ok=True)
    stored = {f".{n}": matrix for n, matrix in sorted(matrices.items())}
    for n, by_range in sorted((from_images or {}).items()):
        stored |= {f"{_suffix(n, each)}": matrix for each, matrix in by_range.items()}
    data, key = to_bytes(stored, compressed=True), spec.key()
    entry = StoredScheduler(
        name=spec.name,
        key=key,
        file=f"{re.sub(r'[^A-Za-z0-9+-]', '_', spec.name)}-{key[:8]}.npz",
        sha256=hashlib.sha256(data).hexdigest(),
        steps=tuple(sorted(matrices)),
        diffusers=diffusers,
        image_steps=tuple(sorted(from_images or ())),
    )
    (folder / entry.file).write_bytes(data)
    others = [e for e in read_index(folder) if e.key != key]
    index = {"version": VERSION, "schedulers": [vars(e) for e in (*others, entry)]}
    (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    return entry


def _ranges(numbers: Sequence[int]) -> str:
    """Format numbers as ranges: 1, 2, 3, 7 becomes "1-3, 7"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
