"""The compiled shapes of one network that stay in memory, least recently used first.

Each compiled shape holds the weights again, in the layouts that its kernels want, and the buffers of its activations.
Only the shape in use keeps its buffers. The number of shapes is bounded by a count, by the memory that is free, and
for networks whose compiled form is on disk (a tenth of a second to read back) by a size in bytes as well.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Protocol

from ...system.memory import available_bytes, trim_heap
from .requests import Request

_MOST = 4  # shapes
_LEAST = 2  # so that two sizes in turn are not read from disk each time
_BOUND_BYTES = 96 << 20
# Measured on the demonstration model's networks, OpenVINO 2026.4: a model holds its constants once, each of its streams
# packs them and has its own primitives, and kernels keep scratch memory that grows with the largest tensors.
_COPIES_OF_A_STREAM = 2
_SCRATCH = 8  # times the bytes of the network's inputs and outputs


class Compiled(Protocol):
    """What is kept for one shape."""

    def requests(self) -> Iterable[Request]:
        """All its requests that hold the network's weights, one for each stream."""
        ...

    def release(self) -> None:
        """Free the buffers of activations; the next run allocates them again."""
        ...


class CompiledShapes:
    """Compiled shapes by key. The caller holds the runner's lock."""

    def __init__(self, weights_bytes: int, *, on_disk: bool) -> None:
        """`on_disk` says whether another process or a later call can read compiled shapes back."""
        self._weights_bytes, self._on_disk = weights_bytes, on_disk
        self._kept: OrderedDict[str, Compiled] = OrderedDict()  # the last one used is the last

    def __call__(self, key: str, make: Callable[[], Compiled]) -> Compiled:
        """The compiled shape of this key, made now where it is not kept."""
        last = next(reversed(self._kept), None)
        if last is not None and last != key:
            self._kept[last].release()
        if key not in self._kept:
            self._drop(len(self._kept) + 1 - self._room())
            made = self._kept[key] = make()
            while len(self._kept) > _LEAST and self._on_disk and self._bytes() > _BOUND_BYTES:
                self._drop(1)
            trim_heap()
            return made
        self._kept.move_to_end(key)
        return self._kept[key]

    def clear(self) -> None:
        """Let go of all."""
        self._kept.clear()

    def __len__(self) -> int:
        """How many are kept now."""
        return len(self._kept)

    def _drop(self, count: int) -> None:
        for _ in range(min(count, len(self._kept))):
            self._kept.popitem(last=False)

    def _room(self) -> int:
        """How many shapes may stay, by the memory that is free."""
        free = available_bytes()
        return _MOST if free is None else max(1, min(_MOST, free // 4 // max(1, self._weights_bytes)))

    def _bytes(self) -> int:
        """An estimate of what the kept shapes hold without their activations."""
        return sum(estimate_bytes(self._weights_bytes, list(kept.requests())) for kept in self._kept.values())


def estimate_bytes(weights_bytes: int, requests: list[Request]) -> int:
    """What one compiled shape holds: its weights, and the scratch memory of its kernels."""
    tensors = sum(request.tensor_bytes for request in requests)
    return weights_bytes * (1 + _COPIES_OF_A_STREAM * len(requests)) + _SCRATCH * tensors
