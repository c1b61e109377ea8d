"""Calls of diffusers' and transformers' modules as named arrays, and their outputs.

A `Call` has the tensors that an artifact takes. Everything that changes from call to call is one of them. A call that
has no such form raises `Unsupported`, and eager PyTorch runs it. `denoisers` and `encoders` read them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...plan.bindings import Binding

Array = NDArray[Any]
Arguments = Mapping[str, Any]
Outputs = Mapping[str, Tensor]

SIDES = ("latent_height", "latent_width")


class Unsupported(Exception):
    """The artifact cannot take this call, or stand for this module. The message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a module.

    Attributes:
        name: the component that runs it: unet, controlnet, vae_decoder, ...
        inputs: the tensors of the component.
        outputs: their bindings.
        arrays: the values of the inputs, by name.
        finish: turns the component's outputs into what the module returns.
        lora_scale: the factor of all LoRAs in this call.
        timestep: of a denoiser: an image goes on as long as it falls.
    """

    name: str
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    arrays: Mapping[str, Array]
    finish: Callable[[Outputs], Any]
    lora_scale: float = 1.0
    timestep: float | None = None


class Reader:
    """Collects the inputs of one call. `rows` is the size of the batch."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.inputs: list[Binding] = []
        self.arrays: dict[str, Array] = {}

    def add(self, name: str, value: Any, *dims: int | str, dtype: str = "float32") -> None:
        """Add a tensor [batch, *dims]. A string names a size that may change; -1 is a size that the network fixes."""
        if not isinstance(value, Tensor) or value.ndim != 1 + len(dims):
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise Unsupported(f"{name} is {got}, expected a tensor of {1 + len(dims)} dimensions")
        if value.shape[0] != self.rows or 0 in value.shape:
            raise Unsupported(f"{name} is {list(value.shape)}, expected {self.rows} rows")
        for dim, size in zip(dims, value.shape[1:], strict=True):
            if isinstance(dim, int) and dim not in (-1, size):
                raise Unsupported(f"{name} is {list(value.shape)}, expected {dim} where it has {size}")
        fixed = tuple(size if dim == -1 else dim for dim, size in zip(dims, value.shape[1:], strict=True))
        self.inputs.append(Binding(name=name, dtype=dtype, dims=("batch", *fixed)))
        kind = torch.int64 if dtype == "int64" else torch.float32
        if dtype == "int64" and value.dtype.is_floating_point:
            raise Unsupported(f"{name} is {value.dtype}, expected integers")
        self.arrays[name] = value.detach().to("cpu", kind).contiguous().numpy()

    def timestep(self, value: Any) -> float:
        """Add the timestep, one for each row. Return the largest."""
        steps = torch.as_tensor(value, dtype=torch.float32).detach().cpu().reshape(-1)
        if len(steps) not in (1, self.rows):
            raise Unsupported(f"timestep has {len(steps)} values, expected 1 or {self.rows}")
        self.add("timestep", steps.expand(self.rows))
        return float(steps.max())


def refuse(arguments: Arguments, *names: str) -> None:
    """Raise `Unsupported` if one of these arguments is set."""
    for name in names:
        if arguments.get(name) is not None:
            raise Unsupported(f"{name} is set")


def float_output(name: str, *dims: int | str) -> Binding:
    """Return the binding of an output with a row for each row of the batch."""
    return Binding(name=name, dtype="float32", dims=("batch", *dims))


def as_tensors(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    """Return arrays of a runner as tensors that share their memory."""
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
