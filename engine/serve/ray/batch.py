"""`map`: the images of a file of prompts, on Ray Data. A second run after a stop does only what is missing.

NUMBER-DIGEST.png               the image of line NUMBER; DIGEST identifies the model and the line's arguments
.NUMBER-DIGEST.png.PID-THREAD   an unfinished file, which is renamed when it is complete
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.data
from PIL import Image

from ...errors import CalotypeError, InputError
from ...files.paths import write_atomic
from ...files.prompt_file import read_prompts
from ...loading import load
from ..engine import Engine
from ..job import JobRequest

_UNFINISHED = re.compile(r"\.\d+-[0-9a-f]{12}\.png\.\d+-\d+")
_ABANDONED_S = 60.0  # a file in progress is younger


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The result of `map`.

    Attributes:
        written: The number of images that this run wrote.
        kept: The number of images that were there before.
        failed: The lines without an image, as (place, error).
    """

    written: int
    kept: int
    failed: tuple[tuple[str, str], ...]


def map(
    prompts: str | Path,
    output: str | Path,
    *,
    model: str | Path = "demo",
    backend: str = "auto",
    workers: int = 1,
    jobs_per_worker: int = 8,
    cpus: float = 1.0,
    gpus: float = 0.0,
) -> Batch:
    """Generate one image for each line of a file, and write each to a file of its own.

    A line without a seed gets one that its digest determines, so a line that runs again has the same image.

    Args:
        prompts: A prompt on each line, or a JSON object with the arguments of a call (`calotype generate --prompts`).
        output: The folder of the images, which all machines see under this path.
        model: What `calotype.load` opens, under a path that all machines see.
        backend: As in `calotype.load`.
        workers: The largest number of processes that hold the model.
        jobs_per_worker: Images that a worker generates together.
        cpus: CPU cores of a worker.
        gpus: GPUs of a worker.

    Returns:
        What was written, what was there, and which lines failed.

    Raises:
        InputError: The file cannot be read, or a line generates several images.
    """
    folder = Path(output).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(folder)
    rows = [_row(place, line, folder, f"{model}\n{backend}") for place, line in read_prompts(Path(prompts))]
    missing = [row for row in rows if not _is_complete(Path(row["path"]))]
    failed = []
    if missing:
        blocks = -(-len(missing) // jobs_per_worker)
        done = ray.data.from_items(missing, override_num_blocks=blocks).map_batches(
            Generator,
            fn_constructor_args=(str(model), backend),
            batch_size=jobs_per_worker,
            batch_format="numpy",
            concurrency=(1, workers),
            num_cpus=cpus,
            num_gpus=gpus,
        )
        failed = [(row["place"], row["error"]) for row in done.iter_rows() if row["error"]]
    return Batch(written=len(missing) - len(failed), kept=len(rows) - len(missing), failed=tuple(sorted(failed)))


class Generator:
    """An engine in a worker of Ray Data."""

    def __init__(self, model: str, backend: str) -> None:
        self._engine = Engine(load(model, backend=backend))

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, list[str]]:
        """Generate and write the images of some lines together, and return the errors."""
        jobs = [self._submit(json.loads(line)) for line in rows["line"]]
        errors = [_write(job, Path(path)) for job, path in zip(jobs, rows["path"], strict=True)]
        return {"place": list(rows["place"]), "error": errors}

    def _submit(self, line: Mapping[str, Any]) -> Any:
        arguments = dict(line)
        try:
            return self._engine.submit(JobRequest(prompt=arguments.pop("prompt", None), arguments=arguments))
        except CalotypeError as refused:
            return refused


def _row(place: str, line: Mapping[str, Any], folder: Path, model: str) -> dict[str, str]:
    if line.get("num_images", 1) != 1 or not isinstance(line.get("prompt"), (str, type(None))):
        message = f"{place} generates several images, and each line has one file. Write a line for each image."
        raise InputError(message, argument="prompts")
    digest = hashlib.sha256(f"{model}\n{json.dumps(line, sort_keys=True)}".encode()).hexdigest()
    seeded = line if line.get("seed") is not None else {**line, "seed": int(digest[-8:], 16)}
    path = folder / f"{int(place.rpartition(' ')[2]):06d}-{digest[:12]}.png"
    return {"place": place, "path": str(path), "line": json.dumps(seeded)}


def _write(job: Any, path: Path) -> str:
    """Write the image of a job, and return its error or an empty text."""
    if isinstance(job, CalotypeError):
        return str(job)
    try:
        image = job.result().images[0]
    except CalotypeError as failed:
        return str(failed)
    png = io.BytesIO()
    image.save(png, "PNG")
    write_atomic(path, png.getvalue())
    return ""


def _is_complete(path: Path) -> bool:
    """Return whether a file exists and is an undamaged PNG."""
    try:
        with Image.open(path) as image:
            image.verify()
    except (OSError, SyntaxError):  # PIL raises SyntaxError for a damaged PNG
        return False
    return True


def _remove_unfinished(folder: Path) -> None:
    """Remove what killed workers left."""
    for path in folder.iterdir():
        if _UNFINISHED.fullmatch(path.name):
            with suppress(FileNotFoundError):  # its worker has renamed it
                if time.time() - path.stat().st_mtime > _ABANDONED_S:
                    path.unlink()
