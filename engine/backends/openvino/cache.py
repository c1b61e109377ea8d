"""Disk cache of networks that OpenVINO compiled: the next start reads them in half the time.

OpenVINO's own cache (`CACHE_DIR`) detects a truncated blob but not one with changed values, and would generate images
with it. It also raises an error if it cannot create its folder. So `calotype.files.cache` stores the blobs with a
SHA-256, under a key of everything that they depend on. A network whose blob is missing, damaged or of another version
is compiled again.
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
from ...files.cache import OPENVINO, writes
from ...files.digest import digest_of

_LARGEST_BYTES = 256 << 20  # larger networks are compiled as fast as their blobs, which repeat all weights, are read
_GRAPHS = 8  # increase it when the partition or the rewrites of a graph change


class CompiledCache:
    """The compiled forms of one ONNX file and of its parts."""

    def __init__(self, library: Any, core: Any, path: Path, size: int, identity: Mapping[str, Any]) -> None:
        """`size` is the size of the file with its weights, in bytes; `identity` has what else the graphs depend on."""
        self._library, self._core = library, core
        self._identity = {
            "version": core.get_versions("CPU")["CPU"].build_number,
            # Machines may share a cache, and a blob is for one instruction set.
            "machine": [str(core.get_property("CPU", n)) for n in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")],
            "files": [(str(p.resolve()), (s := p.stat()).st_size, s.st_mtime_ns) for p in files_of(path)],
            "graphs": _GRAPHS,
            **identity,
        }
        self.worth_it = size <= _LARGEST_BYTES  # else the cache stores nothing

    def read(self, key: Mapping[str, Any], settings: Mapping[str, Any]) -> Any | None:
        """Return the compiled graph of this key, or None if the cache has none or the file is damaged."""
        content = OPENVINO.read(self._key(key, settings)) if self.worth_it else None
        if content is None:
            return None
        # The weights stay mapped from the file: in memory they would exist twice.
        blob = np.frombuffer(content, np.uint8)
        try:
            compiled = self._core.import_model(self._library.Tensor(blob, shared_memory=True), "CPU", dict(settings))
        except Exception:  # another build of the same version, another CPU: compile
            return None
        compiled.blob = blob  # keeps it alive: OpenVINO has only a pointer
        if isinstance(content.obj, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            content.obj.madvise(mmap.MADV_DONTNEED)  # OpenVINO has repacked it; later reads come from the file
        return compiled

    def write(self, key: Mapping[str, Any], settings: Mapping[str, Any], compiled: Any) -> None:
        """Store a compiled graph."""
        if not self.worth_it or not writes():
            return
        with suppress(OSError, SourceError):
            OPENVINO.root.mkdir(parents=True, exist_ok=True)  # first: without the folder the export is useless
            stream = io.BytesIO()
            try:
                compiled.export_model(stream)
            except Exception:  # not every network can be exported
                return
            OPENVINO.write(self._key(key, settings), stream.getvalue())

    def _key(self, key: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
        return digest_of([self._identity, dict(settings), dict(key)])


def files_of(path: Path) -> list[Path]:
    """Return an ONNX file and its external data, whose file name starts with the name of the ONNX file."""
    return sorted(file for file in path.parent.glob(f"{path.name}*") if file.is_file())
