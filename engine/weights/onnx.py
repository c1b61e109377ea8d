"""The weights of an ONNX file by layer name, with the position of each in its file.

torch's exporter keeps the name of a convolution's weight, but stores most linear weights transposed and without a name.
Every node has the name of its module. So the weight of a layer is the second input of its MatMul, Gemm or Conv. The
reader does not need the package onnx, which is not a dependency of running a plan. It implements only the required
parts of the protobuf encoding (https://protobuf.dev/programming-guides/encoding) and of onnx.proto.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError

SCOPES = "pkg.torch.onnx.name_scopes"  # in a node's metadata: its modules, outermost first
_LAYERS = ("MatMul", "Gemm", "Conv")
_CONVERSIONS = ("DequantizeLinear", "Cast", "Transpose", "Reshape")
_TYPES = {1: "fp32", 10: "fp16", 16: "bf16"}  # of onnx.TensorProto; the other types are quantized
_STORED = {"fp32": "<f4", "fp16": "<f2", "bf16": "<u2"}
_OTHERS = {2: "uint8", 3: "int8", 17: "fp8", 21: "uint4", 22: "int4"}

# The path to tensors in an ONNX model: message -> number of a field -> the message in it.
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
    """The weight of one layer in the file. `refused` is the reason why it cannot be changed, or None."""

    initializer: str
    shape: tuple[int, ...]  # of the layer: [out, in, ...]
    transposed: bool  # the file has [in, out]
    precision: str
    file: Path
    offset: int
    refused: str | None = None

    def read(self) -> NDArray[np.float32]:
        """Return the weight in the layer's layout.  # [out, in, ...]"""
        with self.file.open("rb") as file:
            stored = np.fromfile(file, _STORED[self.precision], math.prod(self.shape), offset=self.offset)
        if self.precision == "bf16":  # the upper half of a float32
            stored = (stored.astype(np.uint32) << 16).view(np.float32)
        array = stored.astype(np.float32).reshape(self.shape[::-1] if self.transposed else self.shape)
        return array.T if self.transposed else array

    def put(self, weight: NDArray[np.float32]) -> NDArray[np.generic]:
        """Convert a weight of the layer to the file's layout and type. bfloat16 is returned as uint16 bits."""
        array = np.ascontiguousarray(weight.T if self.transposed else weight, dtype=np.float32)
        if self.precision != "bf16":
            return array.astype(_STORED[self.precision])
        bits = array.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)  # to nearest, ties to even


def weights_of(path: Path) -> dict[str, Stored]:
    """Return the weight of each layer ("mid_block.attentions.0.proj_in"). Raises `BackendError` for an invalid file."""
    try:
        graph = _Graph(path)
    except (OSError, ValueError, IndexError, KeyError, TypeError, SyntaxError) as error:
        raise BackendError(f"cannot read {path} as ONNX: {error}") from None
    return graph.weights()


def external_files(path: Path) -> set[str]:
    """Return the names of the files that hold the tensors of an ONNX file.

    Covers every tensor: in initializers, attributes, nested graphs and functions.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not ONNX, or has an encoding that another reader could understand differently.
    """
    names: set[str] = set()
    try:
        _collect_external(np.memmap(path, dtype=np.uint8, mode="r").data, "model", names, 0)
    except IndexError:
        raise ValueError("the file is truncated") from None
    return names


def _collect_external(data: memoryview, message: str, names: set[str], depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError(f"messages nest deeper than {_MAX_DEPTH} levels")
    if message == "entry":
        entry = {number: _text(value) for number, value in _fields(data)}
        names |= {entry.get(2, "")} if entry.get(1) == "location" else set()
        return
    for number, value in _fields(data):
        if number >= 2**29:  # a reader that keeps 32 bits would see another field
            raise ValueError(f"invalid field number {number}")
        inner = _MESSAGES[message].get(number)
        if inner == "node" and b"location" not in bytes(_bytes(value)):
            continue  # most nodes: this saves most of the time
        if inner is not None:
            _collect_external(_bytes(value), inner, names, depth + 1)


class _Graph:
    """The initializers of a file, the nodes of its layers, and the producer of every tensor."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._initializers: dict[str, _Initializer] = {}
        self._producers: dict[str, _Node] = {}
        self._layers: list[_Node] = []
        model = next(_bytes(value) for number, value in _fields(memoryview(path.read_bytes())) if number == 7)
        for number, value in _fields(model):
            if number == 5:
                tensor = _Initializer(_bytes(value))
                self._initializers[tensor.name] = tensor
            elif number == 1:
                self._add(_Node(_bytes(value)))

    def _add(self, node: _Node) -> None:
        self._producers |= dict.fromkeys(node.outputs, node)
        if node.kind in _LAYERS and len(node.inputs) > 1 and node.module:
            self._layers.append(node)

    def weights(self) -> dict[str, Stored]:
        weights: dict[str, Stored] = {}
        readers: dict[str, set[str]] = {}
        for node in self._layers:
            stored = self._stored(node)
            if stored is not None:
                weights[node.module] = stored
                readers.setdefault(stored.initializer, set()).add(node.module)
        for layer, stored in weights.items():
            others = readers[stored.initializer] - {layer}
            if others and stored.refused is None:
                reason = f"it shares its values with {min(others)}"
                weights[layer] = replace(stored, refused=reason)
        return weights

    def _stored(self, node: _Node) -> Stored | None:
        name, computed = node.inputs[1], False
        while name in self._producers and self._producers[name].kind in _CONVERSIONS:
            name, computed = self._producers[name].inputs[0], True
        tensor = self._initializers.get(name)
        if tensor is None:  # a product of two activations
            return None
        transposed = node.kind == "MatMul" or (node.kind == "Gemm" and not node.transposes)
        return Stored(
            initializer=name,
            shape=tensor.dims[::-1] if transposed else tensor.dims,
            transposed=transposed,
            precision=_TYPES.get(tensor.kind, "fp32"),
            file=self._path.parent / (tensor.external.get("location") or ""),
            offset=int(tensor.external.get("offset", "0")),
            refused=tensor.refused or ("it is computed from another tensor" if computed else None),
        )


class _Initializer:
    """An onnx.TensorProto without its values."""

    def __init__(self, data: memoryview) -> None:
        dims: list[int] = []
        self.name, self.kind, self.external = "", 0, dict[str, str]()
        for number, value in _fields(data):
            if number == 1:
                dims += [value] if isinstance(value, int) else _packed(value)
            elif number == 2 and isinstance(value, int):
                self.kind = value
            elif number == 8:
                self.name = _text(value)
            elif number == 13:
                self.external |= _pair(value)
        self.dims = tuple(dims)

    @property
    def refused(self) -> str | None:
        """The reason why its values cannot be replaced, or None."""
        if self.kind not in _TYPES:
            return f"it is stored as {_OTHERS.get(self.kind, 'another type')}"
        return None if self.external else "it is inside the graph's own file"


class _Node:
    """An onnx.NodeProto: its inputs and outputs, and its module."""

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
    """Tell whether an attribute is transB=1 of a Gemm."""
    fields = dict(_fields(attribute))
    return 1 in fields and _text(fields[1]) == "transB" and fields.get(3) == 1


def _module(metadata: Mapping[str, str]) -> str:
    """Return the name of the innermost module, without the prefix of some versions of text encoders."""
    if SCOPES not in metadata:
        return ""
    scopes = list(ast.literal_eval(metadata[SCOPES]))  # the last one is the operation
    return plain(str(scopes[-2]).removeprefix("module.")) if len(scopes) > 1 else ""


def plain(module: str) -> str:
    """Return a module's name in diffusers and transformers, from its name in the export wrappers."""
    return module.removeprefix("model.").removeprefix("text_model.")


def _fields(data: memoryview) -> Iterator[tuple[int, Field]]:
    """Yield the number and the value of every field of a message. Raises `ValueError`, `IndexError`."""
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
            raise ValueError(f"invalid wire type {wire}")
        if at + size > len(data):
            raise ValueError("the file is truncated")
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
            raise ValueError("a number has more than 64 bits")


def _packed(data: memoryview) -> list[int]:
    values, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        values.append(value)
    return values


def _bytes(value: Field) -> memoryview:
    if isinstance(value, int):
        raise ValueError("got a number; expected a message")
    return value


def _text(value: Field) -> str:
    return str(_bytes(value), "utf-8")


def _pair(value: Field) -> dict[str, str]:
    """An onnx.StringStringEntryProto."""
    fields = dict(_fields(_bytes(value)))
    return {_text(fields[1]): _text(fields[2])} if 1 in fields and 2 in fields else {}
