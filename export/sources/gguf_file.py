"""Weights in GGUF, as stable-diffusion.cpp and ComfyUI-GGUF write them: the header, and dequantized tensors.

The header is read here, with every length checked against the file, because the package `gguf` trusts it. That package
dequantizes. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Does not import torch.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calotype.errors import SourceError

from .weight_files import Header, check_safetensors

SUFFIX = ".gguf"
# Type of a tensor in the format -> its name, values per block and bytes per block.
_TYPES: Mapping[int, tuple[str, int, int]] = {
    **{0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 28: ("F64", 1, 8)},
    **{2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34)},
    **{10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144)},
    **{13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210)},
}
_FLOATS = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}  # BF16 is dequantized
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # type of a value -> bytes
_STRING, _ARRAY, _UINT32, _INT32 = 8, 9, 4, 5
_MAX_AXES, _MAX_NAME, _MAX_ENTRIES = 8, 1 << 16, 1 << 20
_ORIGINAL_SHAPE = "comfy.gguf.orig_shape."  # ComfyUI-GGUF stores a tensor as rows of 256, and its shape here


@dataclass(frozen=True, kw_only=True)
class _Entry:
    kind: str
    shape: tuple[int, ...]
    offset: int  # in the file
    size: int  # bytes


class GgufFile:
    """The tensors of one file."""

    def __init__(self, path: Path) -> None:
        """Read the header. Raises `SourceError` for a file that is not GGUF, not complete, or of an unknown type."""
        self.path = path
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                entries = _read(path, _Reader(file, size), size)
        except OSError as failed:
            raise SourceError(f"cannot read {path}: {failed.strerror}.", path=path) from None
        except (ValueError, UnicodeDecodeError, struct.error) as failed:
            message = f"cannot read {path}: it is not a GGUF file, or it is damaged ({failed}). Download it again."
            raise SourceError(message, path=path) from None
        names = _original_names(list(entries))
        self._entries = {names[name]: entry for name, entry in entries.items()}

    def header(self) -> Header:
        """Return names and shapes. The types are those of the dequantized tensors."""
        types = {"F16": "F16", "F64": "F64"}
        return Header(
            shapes={name: entry.shape for name, entry in self._entries.items()},
            types={name: types.get(entry.kind, "F32") for name, entry in self._entries.items()},
            metadata={},
        )

    def kinds(self) -> str:
        """Return the quantized types in the file, for messages."""
        return ", ".join(sorted({entry.kind for entry in self._entries.values()}))

    def tensors(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield each tensor, dequantized by the package `gguf`. Raises `SourceError` if it is not installed."""
        for name, entry in self._entries.items():
            with self.path.open("rb") as file:
                data = np.fromfile(file, np.uint8, entry.size, offset=entry.offset)
            if entry.kind in _FLOATS:
                array = data.view(_FLOATS[entry.kind])
            else:
                array = _dequantize(self.path, data, entry.kind)
            yield name, array.reshape(entry.shape)


def _dequantize(path: Path, data: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    try:
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError:
        message = f"{path} holds weights in {kind}; to read them, pip install 'calotype[gguf]'."
        raise SourceError(message, path=path) from None
    _, _, block = next(each for each in _TYPES.values() if each[0] == kind)
    values: NDArray[np.float32] = dequantize(data.reshape(-1, block), GGMLQuantizationType[kind])
    return values


class _Reader:
    """Reads numbers and texts, and never more than the file holds."""

    def __init__(self, file: Any, size: int) -> None:
        self._file, self._left = file, size

    def bytes(self, count: int) -> bytes:
        if count > self._left:
            raise ValueError("it ends early")
        self._left -= count
        return bytes(self._file.read(count))

    def skip(self, count: int) -> None:
        if count > self._left:
            raise ValueError("it ends early")
        self._left -= count
        self._file.seek(count, 1)

    def number(self, code: str) -> int:
        return int(struct.unpack(f"<{code}", self.bytes(struct.calcsize(code)))[0])

    def text(self) -> str:
        length = self.number("Q")
        if length > _MAX_NAME:
            raise ValueError(f"a name has {length} bytes")
        return self.bytes(length).decode()

    def tell(self) -> int:
        return int(self._file.tell())


def _read(path: Path, reader: _Reader, size: int) -> dict[str, _Entry]:
    if reader.bytes(4) != b"GGUF":
        raise ValueError("it does not start with GGUF")
    version, tensors, values = reader.number("I"), reader.number("Q"), reader.number("Q")
    if version not in (2, 3):
        raise ValueError(f"its version is {version}; expected 2 or 3, little-endian")
    if max(tensors, values) > _MAX_ENTRIES:
        raise ValueError(f"it declares {tensors} tensors and {values} values")
    alignment, shapes = 32, {}
    for _ in range(values):
        key = reader.text()
        value = _value(reader, reader.number("I"), kept=key.startswith(("general.alignment", _ORIGINAL_SHAPE)))
        if key == "general.alignment":
            alignment = value if isinstance(value, int) else 0
        elif key.startswith(_ORIGINAL_SHAPE):
            shapes[key.removeprefix(_ORIGINAL_SHAPE)] = value
    if alignment <= 0 or alignment & (alignment - 1):
        raise ValueError("its alignment is not a power of two")
    described = [_description(path, reader) for _ in range(tensors)]
    start = -(-reader.tell() // alignment) * alignment
    entries: dict[str, _Entry] = {}
    for name, shape, kind, offset, length in described:
        if name in entries or start + offset + length > size or offset % alignment:
            raise ValueError(f"the tensor {name!r:.80} is there twice, or lies outside the file")
        own = shapes.get(name, shape)
        if not isinstance(own, tuple) or math.prod(own) != math.prod(shape):
            raise ValueError(f"the tensor {name!r:.80} has another number of values than its original shape")
        entries[name] = _Entry(kind=kind, shape=own, offset=start + offset, size=length)
    return entries


def _description(path: Path, reader: _Reader) -> tuple[str, tuple[int, ...], str, int, int]:
    """Return the name, shape, type, offset and length of the next tensor."""
    name, axes = reader.text(), reader.number("I")
    if axes > _MAX_AXES:
        raise ValueError(f"the tensor {name!r:.80} has {axes} axes")
    shape = tuple(reader.number("Q") for _ in range(axes))[::-1]
    kind, offset = reader.number("I"), reader.number("Q")
    if kind not in _TYPES:
        known = ", ".join(each for each, _, _ in _TYPES.values())
        message = f"{path}: {name!r:.80} has the type {kind} of GGUF, which is not read; expected one of {known}."
        raise SourceError(message, path=path, field=name)
    label, values, block = _TYPES[kind]
    if shape and shape[-1] % values:
        raise ValueError(f"the tensor {name!r:.80} has rows of {shape[-1]} values; {label} has blocks of {values}")
    return name, shape, label, offset, math.prod(shape) // values * block


def _value(reader: _Reader, kind: int, *, kept: bool) -> int | tuple[int, ...] | None:
    """Read or skip a value of the metadata. Returns whole numbers, and arrays of them, if `kept`."""
    if kind == _STRING:
        reader.skip(reader.number("Q"))
        return None
    if kind == _ARRAY:
        inner, count = reader.number("I"), reader.number("Q")
        if kept and inner in (_UINT32, _INT32) and count <= _MAX_AXES:
            return tuple(reader.number("Ii"[inner - _UINT32]) for _ in range(count))
        if inner == _STRING:
            for _ in range(count):  # a length is at least 8 bytes, so the loop ends with the file
                reader.skip(reader.number("Q"))
            return None
        if inner not in _SCALARS:
            raise ValueError(f"its metadata has an array of the type {inner}")
        reader.skip(count * _SCALARS[inner])
        return None
    if kind not in _SCALARS:
        raise ValueError(f"its metadata has a value of the type {kind}")
    if kept and kind in (_UINT32, _INT32):
        return reader.number("Ii"[kind - _UINT32])
    reader.skip(_SCALARS[kind])
    return None


def header_of(path: Path) -> Header:
    """Read the header of a safetensors or GGUF file. Raises `SourceError` for a damaged file."""
    return GgufFile(path).header() if path.suffix.lower() == SUFFIX else check_safetensors(path)


def _original_names(tensors: Sequence[str]) -> Mapping[str, str]:
    """Return each name as it is in the original layout.

    stable-diffusion.cpp gives OpenCLIP's encoder the names of transformers, and SDXL's two encoders short prefixes.
    """
    second = any(name.startswith("cond_stage_model.1.") for name in tensors)
    names = {}
    for name in tensors:
        if second and name.startswith("cond_stage_model."):
            rest = name.removeprefix("cond_stage_model.")
            names[name] = f"conditioner.embedders.{rest if rest.startswith('1.') else f'0.{rest}'}"
        else:
            names[name] = name
    return names
