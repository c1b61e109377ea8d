"""The sampler matrices that a plan carries, so that it paints without diffusers.

    samplers/index.json     {"version": 1, "schedulers": [{"name", "key", "file", "sha256", "steps", "diffusers"}, ...]}
    samplers/NAME-KEY.npz   timesteps.N, rows.N and preview.N for every step count N; for some of them as well what
                            sets out from pictures: rows.N.S, clean.N.S, kept.N.S, ... with the first S steps left out,
                            and rows.N.noise, ... for a mask that is painted over from noise alone

A scheduler is found by the `key` of its spec: what it is and how it is configured, and not which diffusers compiled
it, since a machine that only paints has none. How matrices are compiled is not known here.
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

__all__ = ["StoredScheduler", "courses", "find_matrix", "read_index", "write_matrices"]

INDEX = "index.json"
VERSION = 1
_FIELDS = ("timesteps", "rows", "preview")
_OF_PICTURES = ("clean", "kept")
_LARGEST_BYTES = 1 << 30  # of one scheduler's matrices, unpacked
_STEPS = list_of(integer(1, 1 << 20))
_INDEX = record(
    {
        "version": integer(0, 1 << 20),
        "schedulers": list_of(
            record(
                {**dict.fromkeys(("name", "key", "file", "sha256", "diffusers"), text()), "steps": _STEPS}
                | {"pictures": _STEPS},
                optional=("pictures",),
            )
        ),
    }
)


@dataclass(frozen=True, kw_only=True)
class StoredScheduler:
    """One scheduler of the index. `diffusers` is the version that it was compiled with."""

    name: str
    key: str
    file: str
    sha256: str
    steps: tuple[int, ...]
    diffusers: str
    pictures: tuple[int, ...] = ()  # the step counts in which it sets out from pictures

    def __str__(self) -> str:
        from_pictures = f" (from pictures {_ranges(self.pictures)})" if self.pictures else ""
        return f"{self.name} in {_ranges(self.steps)} steps{from_pictures}"


def read_index(folder: Path) -> tuple[StoredScheduler, ...]:
    """What a plan's `samplers` folder holds; nothing where there is none.

    Raises:
        SamplerError: the index cannot be read.
    """
    if not (folder / INDEX).exists():
        return ()
    try:
        data = read_json(folder / INDEX, "it lists the plan's samplers")
        if data.get("version") != VERSION:
            raise SamplerError(f"{folder} is of version {data.get('version')!r:.20}; this Calotype reads {VERSION}.")
        _INDEX(data, "")
    except (SourceError, SchemaError) as broken:
        raise SamplerError(f"the plan's list of samplers {folder / INDEX} cannot be used: {broken}.") from None
    return tuple(_entry(**entry) for entry in data["schedulers"])


def _entry(*, steps: Sequence[int], pictures: Sequence[int] = (), **rest: str) -> StoredScheduler:
    return StoredScheduler(steps=tuple(steps), pictures=tuple(pictures), **rest)


def _suffix(steps: int, course: ScheduleRange) -> str | None:
    """Of the arrays' names; None for a course that is in no plan."""
    if course.begin is not None or course.end is not None:
        return None
    if course.origin == "image":
        return f"{steps}.{course.skipped}"
    return f"{steps}.noise" if course.preserves_unmasked else str(steps)


def courses(steps: int) -> tuple[ScheduleRange, ...]:
    """Every way of setting out from a picture in so many steps. What is made for masks serves without one too."""
    kept = (ScheduleRange(origin="image", skipped=skipped, preserves_unmasked=True) for skipped in range(steps))
    return (*kept, ScheduleRange(origin="noise", preserves_unmasked=True))


def find_matrix(
    folder: Path, spec: SchedulerSpec, steps: int, course: ScheduleRange = FULL_SCHEDULE
) -> SamplerMatrix | None:
    """The matrix of this scheduler for so many steps and this course; None where the plan does not hold it.

    Raises:
        SamplerError: it is there and damaged.
    """
    if spec.by_hand:
        return None
    key, suffix = spec.key(), _suffix(steps, course)
    entry = next((e for e in read_index(folder) if e.key == key), None)
    if entry is None or suffix is None or steps not in (entry.pictures if course.takes_latents else entry.steps):
        return None
    path = folder / Path(entry.file).name  # a plan may come from a stranger: nothing outside its folder is read
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise ValueError("its SHA-256 is another")
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            if sum(entry.file_size for entry in packed.infolist()) > _LARGEST_BYTES:
                raise ValueError(f"it unpacks to more than {_LARGEST_BYTES} bytes")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            fields: dict[str, Any] = {
                name: arrays[f"{name}.{suffix}"] for name in (*_FIELDS, *(_OF_PICTURES if course.takes_latents else ()))
            }
    except Exception as broken:  # damaged bytes make numpy and zipfile raise all sorts
        raise SamplerError(f"the plan's samplers {path} are damaged ({broken}); build the plan again.") from None
    return SamplerMatrix(name=spec.name, **fields)


def write_matrices(
    folder: Path,
    spec: SchedulerSpec,
    matrices: Mapping[int, SamplerMatrix],
    diffusers: str,
    pictures: Mapping[int, Mapping[ScheduleRange, SamplerMatrix]] | None = None,
) -> StoredScheduler:
    """Add a scheduler to a `samplers` folder: step count -> matrix; and -> its `courses` -> their matrices.

    One that is there already is replaced.
    """
    if not matrices or spec.by_hand:
        raise SamplerError(f"there is nothing of {spec.name} to keep.")
    folder.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    arrays = {f"{name}.{steps}": getattr(m, name) for steps, m in sorted(matrices.items()) for name in _FIELDS}
    for steps, made in sorted((pictures or {}).items()):
        for course, matrix in made.items():
            named = {name: getattr(matrix, name) for name in (*_FIELDS, *_OF_PICTURES)}
            arrays |= {f"{name}.{_suffix(steps, course)}": array for name, array in named.items()}
    np.savez_compressed(file, allow_pickle=False, **arrays)
    data, key = file.getvalue(), spec.key()
    entry = StoredScheduler(
        name=spec.name,
        key=key,
        file=f"{re.sub(r'[^A-Za-z0-9+-]', '_', spec.name)}-{key[:8]}.npz",
        sha256=hashlib.sha256(data).hexdigest(),
        steps=tuple(sorted(matrices)),
        diffusers=diffusers,
        pictures=tuple(sorted(pictures or ())),
    )
    (folder / entry.file).write_bytes(data)
    kept = [e for e in read_index(folder) if e.key != key]
    index = {"version": VERSION, "schedulers": [vars(e) for e in (*kept, entry)]}
    (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    return entry


def _ranges(numbers: Sequence[int]) -> str:
    """1, 2, 3, 7 as "1-3, 7"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
