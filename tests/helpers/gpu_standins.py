"""Stand-ins for a GPU: memory of the CPU, streams that are numbers, captures that are calls.

Imported as `tests.helpers.gpu_standins` by the conftests of `tests/gpu` (for Triton's interpreter) and
`tests/tensorrt`.
"""

from contextlib import contextmanager, nullcontext

import numpy as np
import torch

from calotype.cuda.device import Arena, Gpu
from calotype.cuda.graphs import CapturedGraph


class Host(Gpu):
    """The device. `stream` is the current stream; `captures` is whether a graph is being captured."""

    def __init__(self) -> None:
        self.stream, self.side, self.captures = 7, 11, False
        self.arenas: dict[int, Arena] = {}

    def current_stream(self) -> int:
        return self.stream

    def nvtx_range(self, name: str):
        return nullcontext()

    def move_module(self, module: torch.nn.Module) -> torch.nn.Module:
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

    def to_device(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array))

    def to_host(self, tensor: torch.Tensor) -> np.ndarray:
        return tensor.numpy()


class Calls:
    """A capturer whose replay is a call. `count` is the number of captures."""

    def __init__(self) -> None:
        self.count = 0

    def record(self, function, inputs) -> CapturedGraph:
        self.count += 1
        outputs = function(inputs)

        def replay() -> None:
            for name, tensor in function(inputs).items():
                outputs[name].copy_(tensor)

        return CapturedGraph(inputs=inputs, outputs=outputs, replay=replay, size_bytes=1)
