"""Traced graphs without weights, which serve all networks of one config: another checkpoint is not traced again.

The exporter stores the weights of a linear layer transposed, and all others as they are or in another shape; it merges
weights that are equal and folds what it can compute. So a graph is traced with other weights than the network's
(`distinct_weights`), and is a template only if each of them is in it. Then it gets the weights of the network.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch
from zlib import crc32

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnxscript import optimizer
from torch import Tensor

from .file import INLINE_BYTES
from .known_graphs import MODEL, WEIGHTS

_MANTISSA = 0x7FFFF  # its lower bits: numbers stay finite and near themselves
_SAMPLE = 1024  # numbers by which a weight is recognized: large networks have gigabytes

Places = dict[str, tuple[str, bool]]  # initializer -> the weight in it, and whether it is transposed


@contextmanager
def distinct_weights(weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Change the first numbers of all weights, so that no two weights are equal, and restore each bit afterwards."""
    by_memory = {w.data_ptr(): w for w in weights.values() if w.dtype == torch.float32 and w.is_contiguous()}

    def flip() -> None:
        for number, weight in enumerate(by_memory.values(), start=1):
            numbers = weight.view(-1).view(torch.int32)[:_SAMPLE]
            numbers ^= torch.arange(len(numbers), dtype=torch.int32).mul_(40503).add_(7919 * number) & _MANTISSA

    flip()
    try:
        yield
    finally:
        flip()


@contextmanager
def unfolded_sigmoids() -> Iterator[None]:
    """Keep the sigmoids of weights, by which Stable Video Diffusion blends, in graphs: a folded weight is in none."""

    def should_fold(node: ir.Node) -> bool | None:
        return False if node.op_type == "Sigmoid" else None  # None: as the optimizer decides

    keeping = partial(optimizer.optimize_ir, should_fold=should_fold)
    with patch.object(optimizer, "optimize_ir", keeping):
        yield


def find_weights(model: ir.Model, weights: Mapping[str, Tensor]) -> Places | None:
    """Return where the weights are in a graph; None if one is not there exactly once, as it is or transposed."""
    unknown: dict[tuple[int, int], list[str]] = {}
    for name, value in model.graph.initializers.items():
        if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT:
            unknown.setdefault(_content(value.const_value.numpy()), []).append(name)
    places: Places = {}
    weights = _floats(weights)
    for weight, tensor in weights.items():
        ways = (tensor, tensor.t()) if tensor.ndim == 2 else (tensor,)
        names = [(name, way is not tensor) for way in ways for name in unknown.get(_content(way.numpy()), ())]
        if len(names) != 1:
            return None
        places[names[0][0]] = (weight, names[0][1])
    return places if len(places) == len(weights) else None


def fill(model: ir.Model, places: Places, weights: Mapping[str, Tensor]) -> bool:
    """Put weights into a graph, and return whether they have its names and sizes."""
    if _floats(weights).keys() != {weight for weight, _ in places.values()}:
        return False
    for name, (weight, transposed) in places.items():
        value, tensor = model.graph.initializers[name], weights[weight]
        assert isinstance(value.shape, ir.Shape)
        shape = [int(size) for size in value.shape.numpy()]
        if math.prod(shape) != tensor.numel():
            return False
        value.const_value = _lazy(tensor.t() if transposed else tensor, shape, name)
    return True


def save_filled(model: ir.Model, folder: Path) -> Path:
    """Write a graph and its external data into a folder, and return its file."""
    ir.save(model, folder / MODEL, external_data=f"{MODEL}.data", size_threshold_bytes=INLINE_BYTES)
    return folder / MODEL


def save_template(model: ir.Model, places: Places, folder: Path) -> None:
    """Write a graph without its weights into a new folder. The model loses its weights."""
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        if name in places:
            shape, dtype = value.const_value.shape, value.const_value.dtype
            assert isinstance(shape, ir.Shape)
            value.const_value = ir.ExternalTensor(WEIGHTS, None, None, dtype=dtype, shape=shape, name=name)
        else:  # constants of the graph stay in its file
            value.const_value = ir.tensor(value.const_value.numpy().copy(), name=name)
    folder.mkdir()
    ir.save(model, folder / MODEL)
    (folder / WEIGHTS).write_text(json.dumps(places))


def fill_template(template: Path, weights: Mapping[str, Tensor], folder: Path) -> bool:
    """Write the graph of a template with other weights, as a trace of their network would write it.

    Args:
        template: the template's folder.
        weights: the network's tensors by their names in the trace.
        folder: receives the graph and its external data.

    Returns:
        Whether it was written: not if the template is damaged, or has weights of other names or shapes.
    """
    try:
        model = ir.load(template / MODEL)
        places: Places = json.loads((template / WEIGHTS).read_text())
    except Exception:  # protobuf raises errors of its own
        return False
    if not fill(model, places, weights):
        return False
    save_filled(model, folder)
    return True


def _floats(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight for name, weight in weights.items() if weight.is_floating_point()}


def _lazy(tensor: Tensor, shape: Sequence[int], name: str) -> ir.TensorProtocol:
    """Return a tensor that is copied, if it is transposed, only while it is written."""

    def evaluated() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(tensor.numpy()).reshape(shape), name=name)

    return ir.LazyTensor(evaluated, dtype=ir.DataType.FLOAT, shape=ir.Shape(shape), name=name)


def _content(array: NDArray[Any]) -> tuple[int, int]:
    return array.size, crc32(np.ascontiguousarray(array.flat[:_SAMPLE]).data)
