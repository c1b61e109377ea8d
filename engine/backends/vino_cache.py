"""Networks that OpenVINO compiled, kept on disk: the next start reads them in half the time.

OpenVINO's own cache (`CACHE_DIR`) notices a blob that is cut short, and not one whose numbers changed: it would paint
with them. And it raises where its folder cannot be made. So the blobs are kept here: under a key of all that decides
them, with a SHA-256 at the end. What is missing, damaged or written by another version is compiled again; a folder that
cannot be written costs time at the next start, no more.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from calotype.errors import SourceError
from calotype.home import home, write_whole

_LARGEST_BYTES = 512 << 20  # a blob holds all weights again: for large networks the disk is worth more than the seconds
_MOST_BYTES = 2 << 30  # of all blobs; the ones not used for longest give way
_DAY_S = 86400
_DIGEST, _DIGEST_BYTES = hashlib.sha256, 32
_GRAPHS = 7  # counts up when a file of one version is taken apart or rewritten otherwise than before


class CompiledCache:
    """The compiled forms of one ONNX file and of its parts."""

    def __init__(self, library: Any, core: Any, path: Path, size: int, identity: Mapping[str, Any]) -> None:
        """`size` is that of the file with its weights, in bytes; `identity` what else decides the graphs."""
        self._core = core
        self._library = library
        self._version: str = core.get_versions("CPU")["CPU"].build_number.replace("/", "-")
        self._identity = {"machine": _machine(core), "files": _files(path), "graphs": _GRAPHS, **identity}
        self.worth_it = size <= _LARGEST_BYTES  # else nothing is kept

    def read(self, key: Mapping[str, Any], settings: Mapping[str, Any]) -> Any | None:
        """The graph of this key as it was compiled, or None where it was not, or the file is damaged."""
        if not self.worth_it:
            return None
        with suppress(OSError, SourceError):
            path = self._path(key, settings)
            if path.stat().st_size <= _DIGEST_BYTES:
                return None
            # Weights stay where the file is mapped: read into memory, they would be there twice.
            with path.open("rb") as file:  # OpenVINO takes what may be written, and writes nothing
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            data = np.frombuffer(mapped, dtype=np.uint8)
            blob = data[:-_DIGEST_BYTES]
            if _DIGEST(blob.data).digest() != data[-_DIGEST_BYTES:].tobytes():
                return None
            tensor = self._library.Tensor(blob, shared_memory=True)
            try:
                compiled = self._core.import_model(tensor, "CPU", dict(settings))
            except Exception:  # another build of the same version, another CPU: compile
                return None
            compiled.blob = data  # OpenVINO has a pointer alone
            if hasattr(mmap, "MADV_DONTNEED"):  # all was read once, and packed; what is read again comes from the file
                mapped.madvise(mmap.MADV_DONTNEED)
            with suppress(OSError):
                os.utime(path)  # used now
            return compiled
        return None

    def write(self, key: Mapping[str, Any], settings: Mapping[str, Any], compiled: Any) -> None:
        """Keep a compiled graph."""
        if not self.worth_it:
            return
        with suppress(OSError, SourceError):
            path = self._path(key, settings)
            path.parent.mkdir(parents=True, exist_ok=True)  # before the export: it is for nothing where this fails
            stream = io.BytesIO()
            try:
                compiled.export_model(stream)
            except Exception:  # not every network can be exported
                return
            blob = stream.getvalue()
            _make_room(path.parent.parent, len(blob))
            write_whole(path, blob + _DIGEST(blob).digest())

    def _path(self, key: Mapping[str, Any], settings: Mapping[str, Any]) -> Path:
        named = json.dumps([self._identity, dict(settings), dict(key)], sort_keys=True, default=str)
        return home() / "openvino" / self._version / f"{hashlib.sha256(named.encode()).hexdigest()}.blob"


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


def _make_room(root: Path, need: int) -> None:
    """Delete what writers left that were killed, and the blobs not used for longest until another `need` bytes fit."""
    for left in root.rglob(".*.blob.*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _DAY_S:  # younger ones may be written now
                left.unlink()
    found = sorted(((p.stat(), p) for p in root.rglob("*.blob")), key=lambda entry: entry[0].st_mtime_ns)
    total = sum(state.st_size for state, _ in found)
    for state, path in found:
        if total + need <= _MOST_BYTES:
            break
        path.unlink(missing_ok=True)
        total -= state.st_size
