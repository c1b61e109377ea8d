"""The device of a check: a GPU, or a CPU that walks the same code with stand-ins for the device and its captures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calotype.backends.torch import cuda
from calotype.cuda.capture import graph_seconds
from calotype.cuda.device import Gpu
from calotype.cuda.fused import fuse
from calotype.cuda.graphs import CapturedGraph, Function, Tensors
from calotype.graph import runner


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where a stage runs. `tiny` stages have small networks, a case of each kind, and no meaning as figures."""

    name: str  # "cuda" or "cpu"
    tiny: bool

    @property
    def on_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.name == "cuda"

    def seconds(self, run: Callable[[], object]) -> float:
        """Return the seconds of a run: the median of graph replays on a GPU, once by the clock on a CPU."""
        if self.on_gpu:
            return graph_seconds(run)
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Return random numbers on the device."""
        return torch.randn(*shape, device=self.name).to(dtype)

    @contextmanager
    def stand_ins(self) -> Iterator[None]:
        """Let the cuda backend run inside of the block: on a CPU with stand-ins, and with networks as they are."""
        if self.on_gpu:
            yield
            return
        available = replace(cuda.BACKEND, unavailable=_nothing)
        with (
            mock.patch.object(cuda, "BACKEND", available),
            mock.patch.object(fuse, "fuse", return_value=None),
            mock.patch.object(cuda, "Gpu", HostDevice),
            mock.patch.object(runner, "Gpu", HostDevice),
            mock.patch.object(cuda, "CudaGraphCapturer", Calls),
            mock.patch.object(runner, "CudaGraphCapturer", Calls),
        ):
            yield


def _nothing() -> None:
    """Say that nothing is missing."""


class HostDevice(Gpu):
    """The memory of the CPU in place of a device's."""

    @contextmanager
    def side_stream(self) -> Iterator[None]:
        """Change nothing."""
        yield

    @contextmanager
    def nvtx_range(self, name: str) -> Iterator[None]:
        """Change nothing."""
        yield

    def move_module(self, module: nn.Module) -> nn.Module:
        """Return the module."""
        return module

    def total_bytes(self) -> int:
        """Return 16 GiB."""
        return 2**34

    def to_device(self, array: NDArray[Any]) -> Tensor:
        """Return the array as a tensor."""
        return torch.from_numpy(np.ascontiguousarray(array))

    def to_host(self, tensor: Tensor) -> NDArray[Any]:
        """Return the tensor as an array."""
        array: NDArray[Any] = tensor.numpy()
        return array


class Calls:
    """A capturer whose replay is a call."""

    def record(self, function: Function, inputs: Tensors) -> CapturedGraph:
        """Call the function."""
        outputs = function(inputs)

        def replay() -> None:
            for name, tensor in function(inputs).items():
                outputs[name].copy_(tensor)

        return CapturedGraph(inputs=inputs, outputs=outputs, replay=replay, size_bytes=1)
