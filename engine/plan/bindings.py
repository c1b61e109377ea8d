"""A tensor described once: its name, element type and dimensions, some of them symbolic.

Dynamic axes of an export, sample inputs, buffers and the checks at a component's entry are all computed from
these tables and a `Profile`. Knows nothing of networks, of models or of backends.
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
    """One named tensor. `dims` are numbers or symbols ("batch", "latent_height", ...); `dtype` is numpy's name."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        """The shape for these sizes of the symbols."""
        return tuple(d if isinstance(d, int) else sizes[d] for d in self.dims)

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join(map(str, self.dims))}]"

    def to_json(self) -> dict[str, Any]:
        """As plain data, for a plan's manifest."""
        return {"name": self.name, "dtype": self.dtype, "dims": list(self.dims)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Binding:
        """The inverse of `to_json`."""
        return cls(name=data["name"], dtype=data["dtype"], dims=tuple(data["dims"]))


def random_inputs(bindings: Sequence[Binding], shapes: Mapping[str, Sequence[int]], ids: int) -> dict[str, Array]:
    """An array for each binding: normal numbers, or token ids below `ids`; the same each time.

    `shapes` are by the bindings' names.
    """
    draw = np.random.default_rng(0)
    return {
        b.name: draw.integers(0, ids, shapes[b.name])
        if b.dtype == "int64"
        else draw.standard_normal(shapes[b.name], dtype=np.float32)
        for b in bindings
    }


def check_arrays(where: str, bindings: Sequence[Binding], arrays: Mapping[str, Array]) -> dict[str, int]:
    """The sizes that `arrays` give to the symbols; `InputError` where names, types or shapes do not fit."""
    wanted, got = {b.name for b in bindings}, set(arrays)
    if wanted != got:
        raise InputError(f"{where} takes {sorted(wanted)}, but was given {sorted(got)}.")
    sizes: dict[str, int] = {}
    for binding in bindings:
        array = arrays[binding.name]
        if array.dtype != np.dtype(binding.dtype) or not _fits(binding, array.shape, sizes):
            raise InputError(f"{where}: wanted {binding}, got {array.dtype} {list(array.shape)} (sizes {sizes}).")
    return sizes


def _fits(binding: Binding, shape: tuple[int, ...], sizes: dict[str, int]) -> bool:
    """Does `shape` agree with the binding, and with the sizes seen so far (to which it adds)?"""
    if len(shape) != len(binding.dims):
        return False
    return all(
        size == (dim if isinstance(dim, int) else sizes.setdefault(dim, size))
        for dim, size in zip(binding.dims, shape, strict=True)
    )
