"""Bindings: the name, element type and dimensions of a tensor, some of them symbolic.

The dynamic axes of an export, sample inputs, buffers and the checks of a component's inputs are computed from bindings
and a `Profile`. Knows nothing of networks, models or backends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

Array = NDArray[Any]
Sizes = Mapping[str, int]  # symbolic dimension -> its value


@dataclass(frozen=True, kw_only=True)
class Binding:
    """One named tensor. `dims` are sizes or symbols ("batch", "latent_height", ...); `dtype` is a numpy type name."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        """Return the shape for these sizes of the symbols."""
        return tuple(d if isinstance(d, int) else sizes[d] for d in self.dims)

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join(map(str, self.dims))}]"

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a plan's manifest."""
        return {"name": self.name, "dtype": self.dtype, "dims": list(self.dims)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Binding:
        """Return the binding that `to_json` wrote."""
        return cls(name=data["name"], dtype=data["dtype"], dims=tuple(data["dims"]))


@dataclass(frozen=True, kw_only=True)
class Network:
    """One network: its name and its tensors."""

    name: str
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]

    def bindings_json(self) -> dict[str, Any]:
        """Return the tensors as plain data, for `bindings_from_json`."""
        return {side: [b.to_json() for b in getattr(self, side)] for side in ("inputs", "outputs")}


def bindings_from_json(data: Mapping[str, Any]) -> dict[str, tuple[Binding, ...]]:
    """Return the inputs and outputs that `Network.bindings_json` wrote, by the names of their fields."""
    return {side: tuple(Binding.from_json(b) for b in data[side]) for side in ("inputs", "outputs")}


def random_inputs(bindings: Sequence[Binding], shapes: Mapping[str, Sequence[int]], ids: int) -> dict[str, Array]:
    """Return an array of its shape for each binding: always the same normal numbers, or token ids below `ids`."""
    rng = np.random.default_rng(0)
    return {
        b.name: rng.integers(0, ids, shapes[b.name])
        if b.dtype == "int64"
        else rng.standard_normal(shapes[b.name], dtype=np.float32)
        for b in bindings
    }


def check_arrays(where: str, bindings: Sequence[Binding], arrays: Mapping[str, Array]) -> dict[str, int]:
    """Return the size of every symbol in `arrays`. Raises `InputError` where names, types or shapes do not match."""
    expected, got = {b.name for b in bindings}, set(arrays)
    if expected != got:
        raise InputError(f"{where} expects {sorted(expected)}, got {sorted(got)}.", argument=min(expected ^ got))
    sizes: dict[str, int] = {}
    for binding in bindings:
        array = arrays[binding.name]
        if array.dtype != np.dtype(binding.dtype) or not _matches(binding, array.shape, sizes):
            got_text = f"{array.dtype} {list(array.shape)}"
            message = f"{where}: expected {binding}, got {got_text} (sizes {sizes})."
            raise InputError(message, argument=binding.name, got=got_text, expected=str(binding))
    return sizes


def _matches(binding: Binding, shape: tuple[int, ...], sizes: dict[str, int]) -> bool:
    """Tell whether `shape` matches the binding and the sizes so far. Adds new symbols to `sizes`."""
    if len(shape) != len(binding.dims):
        return False
    return all(
        size == (dim if isinstance(dim, int) else sizes.setdefault(dim, size))
        for dim, size in zip(binding.dims, shape, strict=True)
    )
