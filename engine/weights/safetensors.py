"""Safetensors files read with numpy alone: names and shapes from the header, a tensor when it is asked for.

The format: https://github.com/huggingface/safetensors. Knows nothing of what the tensors are for.
"""

from __future__ import annotations

import json
import math
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SourceError

Floats = NDArray[np.float32]

_HEADER_BYTES = 100_000_000  # no header is longer
_AXES = 32  # of an array of numpy 1
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_WHOLE = {"I64": "<i8", "I32": "<i4"}


class TensorFile(Mapping[str, Floats]):
    """The tensors of one file by name, each as float32, whatever it is stored in."""

    def __init__(self, path: Path) -> None:
        """Read the header. Raises `SourceError` where the file is no safetensors, or is not whole."""
        self.path = path
        self.metadata: Mapping[str, str] = {}
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
                raise OSError(0, "it is not a regular file")
            size = status.st_size
            with path.open("rb") as file:
                start = file.read(8)
                length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
                header: Any = json.loads(file.read(length)) if length <= min(size, _HEADER_BYTES) else None
            said = header.pop("__metadata__", None)
            self.metadata = {} if said is None else {name: str(value) for name, value in said.items()}
            self._entries = {name: _Entry(told) for name, told in header.items()}
            _check_no_holes(self._entries.values())
        except OSError as broken:
            raise SourceError(f"{path} cannot be read ({broken.strerror}).") from None
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
            raise SourceError(f"{path} is no safetensors file, or a damaged one; fetch it again.") from None
        self._start = 8 + length
        whole = self._start + max((entry.end for entry in self._entries.values()), default=0)
        if size != whole:
            raise SourceError(f"{path} is {size} bytes long and should be {whole}; fetch it again.")

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, from the header."""
        return self._entries[name].shape

    def kind(self, name: str) -> str:
        """The type in which the tensor is stored, as the format calls it: F16, BF16, I8, ..."""
        return self._entries[name].kind

    def __getitem__(self, name: str) -> Floats:
        """Raises `KeyError`; `SourceError` for a type that no weights are stored in."""
        return self._read(name, _TYPES)

    def number(self, name: str) -> float:
        """A tensor of one number, which may be stored as a whole one. Raises as `[]` does, and where it is of more."""
        if math.prod(self.shape(name)) != 1:
            raise SourceError(f"{self.path}: {name} is of shape {list(self.shape(name))} and should be one number.")
        return float(self._read(name, _TYPES | _WHOLE).reshape(-1)[0])

    def _read(self, name: str, types: Mapping[str, str]) -> Floats:
        entry = self._entries[name]
        if entry.kind not in types:
            raise SourceError(f"{self.path}: {name} is of type {entry.kind}; read are {', '.join(types)}.")
        count = math.prod(entry.shape)
        with self.path.open("rb") as file:
            stored = np.fromfile(file, types[entry.kind], count, offset=self._start + entry.begin)
        if entry.kind == "BF16":  # the upper half of a float32
            stored = (stored.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):  # what no float32 can hold is infinite
            return stored.astype(np.float32, copy=False).reshape(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _check_no_holes(entries: Iterable[_Entry]) -> None:
    """Each tensor begins where the one before it ends, as the format has it: a file is no longer than its tensors."""
    end = 0
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != end:
            raise ValueError(entry.begin)
        end = entry.end


class _Entry:
    """One line of the header. Raises whatever a wrong one makes Python raise."""

    def __init__(self, told: Any) -> None:
        self.kind = str(told["dtype"])
        if len(told["shape"]) > _AXES:
            raise ValueError(self.kind)
        self.shape = tuple(int(size) for size in told["shape"])
        self.begin, self.end = (int(at) for at in told["data_offsets"])
        known = (_TYPES | _WHOLE).get(self.kind)
        held = self.end - self.begin if known is None else math.prod(self.shape) * np.dtype(known).itemsize
        if self.begin < 0 or min(self.shape, default=0) < 0 or self.end - self.begin != held:
            raise ValueError(self.kind)
