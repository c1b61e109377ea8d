"""Graphs without weights that come with Calotype: the networks of common configs need no trace.

`export/tools/known_graphs.py` makes these templates (see `.template`) from traces. They pass the same check as a trace.
A change that increases `TRACER` makes them stale: they are then not found, and the networks are traced.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path
from typing import Any
from zipfile import ZIP_LZMA, BadZipFile, ZipFile, ZipInfo

from ..store.store import key_of

MODEL, WEIGHTS = "model.onnx", "weights.json"  # the files of a template
FOLDER = Path(__file__).with_name("graphs")


def archive_of(depends_on: Mapping[str, Any]) -> Path:
    """Return the archive of a graph, which may not exist."""
    return FOLDER / f"{key_of(depends_on)[:32]}.zip"


@contextmanager
def known_graph(depends_on: Mapping[str, Any]) -> Iterator[Path | None]:
    """Unpack a graph for the duration of the block; None if there is none, or if its archive is damaged."""
    with tempfile.TemporaryDirectory(prefix="calotype-graph-") as folder:
        try:
            with ZipFile(archive_of(depends_on)) as archive:
                archive.extractall(folder)
        except (OSError, EOFError, BadZipFile, LZMAError):
            yield None
        else:
            yield Path(folder)


def pack(template: Path, path: Path) -> None:
    """Write a template into an archive. The same template gives the same bytes."""
    path.parent.mkdir(exist_ok=True)
    with ZipFile(path, "w", ZIP_LZMA) as archive:
        for name in (MODEL, WEIGHTS):
            archive.writestr(ZipInfo(name), (template / name).read_bytes(), ZIP_LZMA)
