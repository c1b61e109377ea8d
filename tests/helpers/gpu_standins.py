"""What stands in for a GPU where there is none: memory of the CPU, streams that are numbers, captures that are calls.

Imported as `tests.helpers.gpu_standins` by the conftests of `tests/gpu` (for Triton's interpreter) and
`tests/tensorrt`.
"""

from contextlib import contextmanager, nullcontext

import numpy as np
import torch

from calotype.cuda.device import Arena, Gpu
from calotype.cuda.graphs import CapturedGraph


class Host(Gpu):
    """The device. `stream` is the current one, `captures` whether a graph is being recorded."""

    def __init__(self) -> None:
        self.stream, self.side, self.captures = 7, 11, False
        self.arenas: dict[int, Arena] = {}

    def current_stream(self) -> int:
        return self.stream

    def named(self, name: str):
        return nullcontext()

    def hold(self, module: torch.nn.Module) -> torch.nn.Module:
        return module

    def total_bytes(self) -> int:
        return 2**34

    def capturing(self) -> bool:
        return self.captures

    @contextmanager
    def side_stream(self):
        self.stream, before = self.side, self.stream
        yield
        self.stream = before

    def arena(self, stream: int) -> Arena:
        return self.arenas.setdefault(stream, Arena(lambda size: self.empty((size,), "uint8")))

    def empty(self, shape, dtype: str) -> torch.Tensor:
        return torch.empty(shape, dtype=getattr(torch, dtype))

    def put(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array))

    def fetch(self, tensor: torch.Tensor) -> np.ndarray:
        return tensor.numpy()


class Calls:
    """Captures: a replay is a call. `made` counts the captures."""

    def __init__(self) -> None:
        self.made = 0

    def record(self, function, inputs) -> CapturedGraph:
        self.made += 1
        outputs = function(inputs)

        def replay() -> None:
            for name, tensor in function(inputs).items():
                outputs[name].copy_(tensor)

        return CapturedGraph(inputs=inputs, outputs=outputs, replay=replay, size_bytes=1)
