"""Networks that OpenVINO compiled, kept on disk: the next start reads them in half the time.

OpenVINO's own cache (`CACHE_DIR`) notices a blob that is cut short, and not one whose numbers changed: it would paint
with them. And it raises where its folder cannot be made. So `calotype.files.cache` keeps the blobs, under a key of all
that decides them, with a SHA-256 at the end. What is missing, damaged or written by another version is compiled again.
"""

from __future__ import annotations

import io
import mmap
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import SourceError
from ...files.cache import OPENVINO
from ...files.digest import digest_of

_LARGEST_BYTES = 512 << 20  # a blob holds all weights again: for large networks the disk is worth more than the seconds
_GRAPHS = 7  # counts up when a file of one version is taken apart or rewritten otherwise than before


class CompiledCache:
    """The compiled forms of one ONNX file and of its parts."""

    def __init__(self, library: Any, core: Any, path: Path, size: int, identity: Mapping[str, Any]) -> None:
        """`size` is that of the file with its weights, in bytes; `identity` what else decides the graphs."""
        self._core = core
        self._library = library
        version = core.get_versions("CPU")["CPU"].build_number
        about = {"version": version, "machine": _machine(core), "files": _files(path), "graphs": _GRAPHS}
        self._identity = {**about, **identity}
        self.worth_it = size <= _LARGEST_BYTES  # else nothing is kept

    def read(self, key: Mapping[str, Any], settings: Mapping[str, Any]) -> Any | None:
        """The graph of this key as it was compiled, or None where it was not, or the file is damaged."""
        if not self.worth_it:
            return None
        kept = OPENVINO.read(self._key(key, settings))
        if kept is None:
            return None
        # Weights stay where the file is mapped: read into memory, they would be there twice.
        blob = np.frombuffer(kept, np.uint8)
        try:
            compiled = self._core.import_model(self._library.Tensor(blob, shared_memory=True), "CPU", dict(settings))
        except Exception:  # another build of the same version, another CPU: compile
            return None
        compiled.blob = blob  # OpenVINO has a pointer alone
        if isinstance(kept.obj, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            kept.obj.madvise(mmap.MADV_DONTNEED)  # all was read once, and packed; the rest comes from the file again
        return compiled

    def write(self, key: Mapping[str, Any], settings: Mapping[str, Any], compiled: Any) -> None:
        """Keep a compiled graph."""
        if not self.worth_it:
            return
        with suppress(OSError, SourceError):
            OPENVINO.root.mkdir(parents=True, exist_ok=True)  # before the export: it is for nothing where this fails
            stream = io.BytesIO()
            try:
                compiled.export_model(stream)
            except Exception:  # not every network can be exported
                return
            OPENVINO.write(self._key(key, settings), stream.getvalue())

    def _key(self, key: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
        return digest_of([self._identity, dict(settings), dict(key)])


def _machine(core: Any) -> list[str]:
    """A store may be shared by machines; OpenVINO itself refuses a blob for another instruction set."""
    return [str(core.get_property("CPU", name)) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]


def files_of(path: Path) -> list[Path]:
    """An ONNX file, and its external data, which lies beside it under a name that begins the same."""
    return sorted(path.parent.glob(f"{path.name}*"))


def _files(path: Path) -> list[tuple[str, int, int]]:
    """What tells that a file is the same without reading it: place, size and time."""
    try:
        states = [(str(p.resolve()), p.stat()) for p in files_of(path)]
    except OSError:
        return []
    return [(name, s.st_size, s.st_mtime_ns) for name, s in states]
