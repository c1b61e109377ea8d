"""A reader for safetensors files that needs only numpy. Reads the header first, and each tensor on access.

The format: https://github.com/huggingface/safetensors. Knows nothing of the purpose of the tensors.
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

_HEADER_BYTES = 100_000_000  # the limit of the format
_MAX_AXES = 32  # of an array of numpy 1
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
FLOATS = frozenset(_TYPES)  # the types that can be read, by their names in the format
_INTEGERS = {"I64": "<i8", "I32": "<i4"}


class TensorFile(Mapping[str, Floats]):
    """The tensors of one file by name, converted to float32."""

    def __init__(self, path: Path) -> None:
        """Read the header. Raises `SourceError` for a file that is not safetensors, or not complete."""
        self.path = path
        self.metadata: Mapping[str, str] = {}
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # opening a pipe would block
                raise OSError(0, "it is not a regular file")
            size = status.st_size
            with path.open("rb") as file:
                start = file.read(8)
                length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
                header: Any = json.loads(file.read(length)) if length <= min(size, _HEADER_BYTES) else None
            metadata = header.pop("__metadata__", None)
            self.metadata = {} if metadata is None else {name: str(value) for name, value in metadata.items()}
            self._entries = {name: _Entry(entry) for name, entry in header.items()}
            _check_no_holes(self._entries.values())
        except OSError as failed:
            raise SourceError(f"cannot read {path}: {failed.strerror}.", path=path) from None
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
            raise SourceError(
                f"cannot read {path}: it is not a safetensors file, or it is damaged. Download it again.", path=path
            ) from None
        self._start = 8 + length
        expected = self._start + max((entry.end for entry in self._entries.values()), default=0)
        if size != expected:
            raise SourceError(f"{path} has {size} bytes; expected {expected}. Download it again.", path=path)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, from the header."""
        return self._entries[name].shape

    def kind(self, name: str) -> str:
        """Return the stored type of a tensor by its name in the format: F16, BF16, I8, ..."""
        return self._entries[name].kind

    def __getitem__(self, name: str) -> Floats:
        """Read a tensor. Raises `KeyError`, and `SourceError` for a type that is not a float."""
        return self._read(name, _TYPES)

    def number(self, name: str) -> float:
        """Read a tensor of one number, a float or an integer. Raises like `[]`, and `SourceError` for another size."""
        if math.prod(self.shape(name)) != 1:
            message = f"{self.path}: {name} has the shape {list(self.shape(name))}; expected one number."
            raise SourceError(message, path=self.path, field=name)
        return float(self._read(name, _TYPES | _INTEGERS).reshape(-1)[0])

    def _read(self, name: str, types: Mapping[str, str]) -> Floats:
        entry = self._entries[name]
        if entry.kind not in types:
            message = f"{self.path}: {name} has the type {entry.kind}; expected one of {', '.join(types)}."
            raise SourceError(message, path=self.path, field=name)
        count = math.prod(entry.shape)
        with self.path.open("rb") as file:
            stored = np.fromfile(file, types[entry.kind], count, offset=self._start + entry.begin)
        if entry.kind == "BF16":  # the upper half of a float32
            stored = (stored.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):  # numbers above the range of float32 become infinite
            return stored.astype(np.float32, copy=False).reshape(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _check_no_holes(entries: Iterable[_Entry]) -> None:
    """Check that each tensor begins where the one before it ends, as the format requires."""
    end = 0
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != end:
            raise ValueError(entry.begin)
        end = entry.end


class _Entry:
    """One entry of the header. An invalid entry raises any exception of Python."""

    def __init__(self, entry: Any) -> None:
        self.kind = str(entry["dtype"])
        if len(entry["shape"]) > _MAX_AXES:
            raise ValueError(self.kind)
        self.shape = tuple(int(size) for size in entry["shape"])
        self.begin, self.end = (int(at) for at in entry["data_offsets"])
        dtype, size = (_TYPES | _INTEGERS).get(self.kind), self.end - self.begin
        expected = size if dtype is None else math.prod(self.shape) * np.dtype(dtype).itemsize
        if self.begin < 0 or min(self.shape, default=0) < 0 or size != expected:
            raise ValueError(self.kind)
