"""The weights of an ONNX file by layer name, with the position of each in its file.

torch's exporter keeps the name of a convolution's weight, but stores most linear weights transposed and without a name.
Every node has the name of its module. So the weight of a layer is the second input of its MatMul, Gemm or Conv.

Runs on protobuf alone, as the package onnx is not a dependency of running a plan: `_SCHEMA` has the fields of
onnx.proto that lead to tensors and to the names of layers.
"""

from __future__ import annotations

import ast
import functools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, first_line
from .delta import WeightDeltas

_SCOPES = "pkg.torch.onnx.name_scopes"  # in a node's metadata: its modules, outermost first
_LAYERS = ("MatMul", "Gemm", "Conv")
_CONVERSIONS = ("DequantizeLinear", "Cast", "Transpose", "Reshape")
_TYPES = {1: "fp32", 10: "fp16", 16: "bf16"}  # of onnx.TensorProto; the other types are quantized
_STORED = {"fp32": "<f4", "fp16": "<f2", "bf16": "<u2"}
_OTHERS = {2: "uint8", 3: "int8", 17: "fp8", 21: "uint4", 22: "int4"}

# message -> number of a field -> its name and its type; "*" if it is repeated
_SCHEMA = {
    "Model": {7: "graph Graph", 20: "training Training*", 25: "functions Function*"},
    "Training": {1: "initialization Graph", 2: "algorithm Graph"},
    "Graph": {1: "node Node*", 5: "initializer Tensor*", 15: "sparse Sparse*"},
    "Function": {7: "node Node*", 11: "attribute Attribute*"},
    "Node": {1: "input string*", 2: "output string*", 4: "op_type string", 5: "attribute Attribute*", 9: "meta Entry*"},
    "Attribute": {
        **{1: "name string", 3: "i int64", 5: "t Tensor", 6: "g Graph", 10: "tensors Tensor*", 11: "graphs Graph*"},
        **{22: "sparse Sparse", 23: "sparses Sparse*"},
    },
    "Sparse": {1: "values Tensor", 2: "indices Tensor"},
    "Tensor": {1: "dims int64*", 2: "data_type int32", 8: "name string", 13: "external_data Entry*"},
    "Entry": {1: "key string", 2: "value string"},
}


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


class OnnxWeights:
    """The weights of every linear layer and convolution of a file, by the layer's name in the model."""

    def __init__(self, path: Path) -> None:
        """Raise `BackendError` for an invalid file."""
        self.path = path
        self._stored = weights_of(path)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return each layer's weight shape."""
        return {name: stored.shape for name, stored in self._stored.items()}

    def check(self, deltas: WeightDeltas) -> None:
        """Raise `BackendError` if one of these weights cannot be changed."""
        for parameter in deltas.patches:
            if refused := self._stored[parameter.removesuffix(".weight")].refused:
                raise BackendError(
                    f"{parameter} cannot be changed, for {refused}: build the plan with the LoRA in it "
                    "(calotype build MODEL --lora FILE), or in fp32, fp16 or bf16."
                )

    def changed(self, deltas: WeightDeltas) -> Iterator[tuple[str, NDArray[np.generic]]]:
        """Yield the initializer of each changed weight with its new value, in the file's type and layout."""
        for parameter, delta in deltas.patches.items():
            stored = self._stored[parameter.removesuffix(".weight")]
            yield stored.initializer, stored.put(delta(stored.read()))


def weights_of(path: Path) -> dict[str, Stored]:
    """Return the weight of each layer ("mid_block.attentions.0.proj_in"). Raises `BackendError` for an invalid file."""
    try:
        graph = _read(path).graph
        tensors = {tensor.name: tensor for tensor in graph.initializer}
        producers = {output: node for node in graph.node for output in node.output}
        weights = {}
        for node in graph.node:
            if node.op_type in _LAYERS and len(node.input) > 1 and (module := _module(node)):
                stored = _stored(path, node, tensors, producers)
                if stored is not None:
                    weights[module] = stored
    except (OSError, ValueError, IndexError, TypeError, SyntaxError) as error:
        raise BackendError(f"cannot read {path} as ONNX: {error}") from None
    layers = defaultdict(set)  # of each initializer
    for layer, stored in weights.items():
        layers[stored.initializer].add(layer)
    for layer, stored in weights.items():
        others = layers[stored.initializer] - {layer}
        if others and stored.refused is None:
            weights[layer] = replace(stored, refused=f"it shares its values with {min(others)}")
    return weights


def _stored(path: Path, node: Any, tensors: Mapping[str, Any], producers: Mapping[str, Any]) -> Stored | None:
    """Return the second input of a layer's node; None if it is not an initializer (a product of two activations)."""
    name, refused = node.input[1], None
    while name in producers and producers[name].op_type in _CONVERSIONS:
        name, refused = producers[name].input[0], "it is computed from another tensor"
    tensor = tensors.get(name)
    if tensor is None:
        return None
    external = {entry.key: entry.value for entry in tensor.external_data}
    if tensor.data_type not in _TYPES:
        refused = f"it is stored as {_OTHERS.get(tensor.data_type, 'another type')}"
    elif not external:
        refused = "it is inside the graph's own file"
    straight = any(attribute.name == "transB" and attribute.i == 1 for attribute in node.attribute)
    transposed = node.op_type == "MatMul" or (node.op_type == "Gemm" and not straight)
    return Stored(
        initializer=name,
        shape=tuple(tensor.dims)[::-1] if transposed else tuple(tensor.dims),
        transposed=transposed,
        precision=_TYPES.get(tensor.data_type, "fp32"),
        file=path.parent / external.get("location", ""),
        offset=int(external.get("offset", "0")),
        refused=refused,
    )


def _module(node: Any) -> str:
    """Return the name of a node's innermost module; "" if it has none."""
    scopes = next((list(ast.literal_eval(entry.value)) for entry in node.meta if entry.key == _SCOPES), [])
    return plain(str(scopes[-2]).removeprefix("module.")) if len(scopes) > 1 else ""  # the last one is the operation


def plain(module: str) -> str:
    """Return a module's name in diffusers and transformers, from its name in the export wrappers."""
    return module.removeprefix("model.").removeprefix("text_model.")


def external_files(path: Path) -> set[str]:
    """Return the names of the files that hold the tensors of an ONNX file.

    Covers every tensor: in initializers, attributes, nested graphs and functions.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not ONNX.
    """
    return set(_locations(_read(path)))


def _locations(message: Any) -> Iterator[str]:
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for each in value if isinstance(value, Sequence) else [value]:
            if field.name != "external_data":
                yield from _locations(each)
            elif each.key == "location":
                yield each.value


def _read(path: Path) -> Any:
    """Parse a file. Raise `OSError`, or `ValueError` if it is not ONNX."""
    from google.protobuf.message import DecodeError

    model = _model_class()()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise ValueError(f"it is damaged, or its messages nest too deep ({first_line(error)})") from None
    if not model.HasField("graph"):
        raise ValueError("it has no graph")
    return model


@functools.cache
def _model_class() -> Any:
    """Return the class of the message `Model` in `_SCHEMA`."""
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message_factory import GetMessageClass

    file = FileDescriptorProto(name="calotype_onnx.proto", package="calotype_onnx", syntax="proto2")
    for message, fields in _SCHEMA.items():
        entry = file.message_type.add(name=message)
        for number, described in fields.items():
            name, kind = described.split()
            label = "LABEL_REPEATED" if kind.endswith("*") else "LABEL_OPTIONAL"
            field = entry.field.add(name=name, number=number, label=FieldDescriptorProto.Label.Value(label))
            kind = kind.removesuffix("*")
            if kind in _SCHEMA:
                field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".calotype_onnx.{kind}"
            else:
                field.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("calotype_onnx.Model"))
