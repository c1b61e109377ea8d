"""The weights of an ONNX file by the names of the model's layers, and where in the file each of them lies.

torch's exporter keeps a convolution's weight under its name, and stores that of most linear layers transposed and
nameless; but every node says from which module it came. So a layer's weight is the second input of the MatMul, Gemm or
Conv that came from it. The file is read here without the package onnx, which a plan does not need to run: of protobuf's
encoding (https://protobuf.dev/programming-guides/encoding) and ONNX's onnx.proto no more than that takes.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError

SCOPES = "pkg.torch.onnx.name_scopes"  # in a node's metadata: the modules that it came from, outermost first
_LAYERS = ("MatMul", "Gemm", "Conv")
_TYPES = {1: "fp32", 10: "fp16", 16: "bf16"}  # of onnx.TensorProto; others are quantized
_STORED = {"fp32": "<f4", "fp16": "<f2", "bf16": "<u2"}
_OTHERS = {2: "uint8", 3: "int8", 17: "fp8", 21: "uint4", 22: "int4"}

# Where tensors are in an ONNX model: message -> number of a field -> the message that it holds.
_MESSAGES: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_MAX_DEPTH = 100  # of messages, as in protobuf's own readers

Field = int | memoryview


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One layer's weight as the file has it. `refused` says why it cannot be changed, where it cannot."""

    initializer: str
    shape: tuple[int, ...]  # as the layer has it: [out, in, ...]
    turned: bool  # the file has [in, out]
    precision: str
    file: Path
    offset: int
    refused: str | None = None

    def read(self) -> NDArray[np.float32]:
        """The weight as the layer has it.  # [out, in, ...]"""
        with self.file.open("rb") as file:
            held = np.fromfile(file, _STORED[self.precision], math.prod(self.shape), offset=self.offset)
        if self.precision == "bf16":  # the upper half of a float32
            held = (held.astype(np.uint32) << 16).view(np.float32)
        array = held.astype(np.float32).reshape(self.shape[::-1] if self.turned else self.shape)
        return array.T if self.turned else array

    def put(self, weight: NDArray[np.float32]) -> NDArray[np.generic]:
        """A weight of the layer as the file would have it; bfloat16 as its bits in uint16."""
        array = np.ascontiguousarray(weight.T if self.turned else weight, dtype=np.float32)
        if self.precision != "bf16":
            return array.astype(_STORED[self.precision])
        bits = array.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)  # to nearest, ties to even


def weights_of(path: Path) -> dict[str, Stored]:
    """Layer ("mid_block.attentions.0.proj_in") -> its weight. Raises `BackendError` where the file cannot be read."""
    try:
        graph = _Graph(path)
    except (OSError, ValueError, IndexError, KeyError, TypeError, SyntaxError) as broken:
        raise BackendError(f"{path} cannot be read as ONNX: {broken}") from None
    return graph.weights()


def external_files(path: Path) -> set[str]:
    """The files that the tensors of an ONNX file are read from, as it names them.

    Of every tensor: initializers, attributes, nested graphs and functions. Raises `OSError`, and `ValueError` for what
    is not ONNX, or is encoded in a way that another reader could take otherwise.
    """
    names: set[str] = set()
    try:
        _collect_external(np.memmap(path, dtype=np.uint8, mode="r").data, "model", names, 0)
    except IndexError:
        raise ValueError("it ends too soon") from None
    return names


def _collect_external(data: memoryview, message: str, names: set[str], depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError(f"it nests deeper than {_MAX_DEPTH} messages")
    if message == "entry":
        entry = {number: _text(value) for number, value in _fields(data)}
        names |= {entry.get(2, "")} if entry.get(1) == "location" else set()
        return
    for number, value in _fields(data):
        if number >= 2**29:  # a reader that keeps 32 bits of it would see another field
            raise ValueError(f"field {number}")
        inner = _MESSAGES[message].get(number)
        if inner == "node" and b"location" not in bytes(_bytes(value)):
            continue  # almost all of them: it saves most of the time
        if inner is not None:
            _collect_external(_bytes(value), inner, names, depth + 1)


class _Graph:
    """Of the file: initializers, nodes that compute with weights, and what makes every tensor."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._initializers: dict[str, _Initializer] = {}
        self._makers: dict[str, _Node] = {}
        self._layers: list[_Node] = []
        model = _one(_fields(memoryview(path.read_bytes())), 7)
        for number, value in _fields(model):
            if number == 5:
                tensor = _Initializer(_bytes(value))
                self._initializers[tensor.name] = tensor
            elif number == 1:
                self._keep(_Node(_bytes(value)))

    def _keep(self, node: _Node) -> None:
        self._makers |= dict.fromkeys(node.outputs, node)
        if node.kind in _LAYERS and len(node.inputs) > 1 and node.module:
            self._layers.append(node)

    def weights(self) -> dict[str, Stored]:
        found: dict[str, Stored] = {}
        readers: dict[str, set[str]] = {}
        for node in self._layers:
            stored = self._stored(node)
            if stored is not None:
                found[node.module] = stored
                readers.setdefault(stored.initializer, set()).add(node.module)
        for layer, stored in found.items():
            others = readers[stored.initializer] - {layer}
            if others and stored.refused is None:
                found[layer] = _refusing(stored, f"the file keeps it in one with that of {min(others)}")
        return found

    def _stored(self, node: _Node) -> Stored | None:
        name, hidden = node.inputs[1], False
        while name in self._makers and self._makers[name].kind in ("DequantizeLinear", "Cast", "Transpose", "Reshape"):
            name, hidden = self._makers[name].inputs[0], True
        tensor = self._initializers.get(name)
        if tensor is None:  # a product of two activations
            return None
        turned = node.kind == "MatMul" or (node.kind == "Gemm" and not node.transposes)
        return Stored(
            initializer=name,
            shape=tensor.dims[::-1] if turned else tensor.dims,
            turned=turned,
            precision=_TYPES.get(tensor.kind, "fp32"),
            file=self._path.parent / (tensor.outside.get("location") or ""),
            offset=int(tensor.outside.get("offset", "0")),
            refused=tensor.refused or ("it is computed from another" if hidden else None),
        )


def _refusing(stored: Stored, why: str) -> Stored:
    return Stored(**{**vars(stored), "refused": why})


class _Initializer:
    """An onnx.TensorProto without its numbers."""

    def __init__(self, data: memoryview) -> None:
        dims: list[int] = []
        self.name, self.kind, self.outside = "", 0, dict[str, str]()
        for number, value in _fields(data):
            if number == 1:
                dims += [value] if isinstance(value, int) else _packed(value)
            elif number == 2 and isinstance(value, int):
                self.kind = value
            elif number == 8:
                self.name = _text(value)
            elif number == 13:
                self.outside |= _pair(value)
        self.dims = tuple(dims)

    @property
    def refused(self) -> str | None:
        """Why its numbers cannot be replaced by others."""
        if self.kind not in _TYPES:
            return f"it is kept in {_OTHERS.get(self.kind, 'another type')}"
        return None if self.outside else "it lies inside the graph's own file"


class _Node:
    """An onnx.NodeProto: what it reads and makes, and the module it came from."""

    def __init__(self, data: memoryview) -> None:
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self.kind, self.module, self.transposes = "", "", False
        for number, value in _fields(data):
            if number == 1:
                self.inputs.append(_text(value))
            elif number == 2:
                self.outputs.append(_text(value))
            elif number == 4:
                self.kind = _text(value)
            elif number == 5:
                self.transposes |= _transposes(_bytes(value))
            elif number == 9:
                self.module = _module(_pair(value)) or self.module


def _transposes(attribute: memoryview) -> bool:
    """Is it a Gemm's transB=1?"""
    told = dict(_fields(attribute))
    return 1 in told and _text(told[1]) == "transB" and told.get(3) == 1


def _module(metadata: Mapping[str, str]) -> str:
    """The innermost module, as the model itself calls it, without the text encoders' level of some versions."""
    if SCOPES not in metadata:
        return ""
    scopes = list(ast.literal_eval(metadata[SCOPES]))  # the last is the operation's own
    return plain(str(scopes[-2]).removeprefix("module.")) if len(scopes) > 1 else ""


def plain(module: str) -> str:
    """A module's name in diffusers and transformers, from its name in our wrappers."""
    return module.removeprefix("model.").removeprefix("text_model.")


def _fields(data: memoryview) -> Iterator[tuple[int, Field]]:
    """Every field of a message: its number, and a number or bytes. Raises `ValueError`, `IndexError`."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(data):
            raise ValueError("it ends too soon")
        yield number, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _packed(data: memoryview) -> list[int]:
    found, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        found.append(value)
    return found


def _one(fields: Iterator[tuple[int, Field]], wanted: int) -> memoryview:
    return next(_bytes(value) for number, value in fields if number == wanted)


def _bytes(value: Field) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    return value


def _text(value: Field) -> str:
    return str(_bytes(value), "utf-8")


def _pair(value: Field) -> dict[str, str]:
    """An onnx.StringStringEntryProto."""
    told = dict(_fields(_bytes(value)))
    return {_text(told[1]): _text(told[2])} if 1 in told and 2 in told else {}
