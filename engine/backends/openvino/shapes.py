"""Cache of the compiled shapes of one network in memory; the least recently used one is dropped first.

Each compiled shape holds a copy of the weights, in the layouts of its kernels, and activation buffers. Only the shape
in use keeps its buffers. A count and the free memory limit the number of shapes. For networks whose compiled form is
on disk (a tenth of a second to read back), a size in bytes limits it as well.
"""

from __future__ import annotations

from collections.abc import Callable

from ...system.lru_cache import LruCache
from ...system.memory import available_bytes, trim_heap
from .requests import Compiled

_MAX_SHAPES = 4
_SERVER_SHAPES = 24
_MIN_SHAPES = 2  # so that two alternating sizes are not read from disk each time
_BOUND_BYTES = 96 << 20
_SERVER_BYTES = 512 << 20
# Measured on the demonstration model's networks, OpenVINO 2026.4: a model holds its constants once, each stream
# repacks them and has its own primitives, and kernels keep scratch memory that grows with the largest tensors.
_COPIES_PER_STREAM = 2
_SCRATCH = 8  # times the bytes of the network's inputs and outputs


_limits = {"shapes": _MAX_SHAPES, "bytes": _BOUND_BYTES}


def keep_for_server() -> None:
    """Keep more shapes in this process from now on: clients of a server take turns with many sizes.

    Reading a shape back takes a tenth of a second, as long as some images.
    """
    _limits.update(shapes=_SERVER_SHAPES, bytes=_SERVER_BYTES)


class CompiledShapes:
    """Compiled shapes by key. The caller holds the runner's lock."""

    def __init__(self, weights_bytes: int, *, on_disk: bool) -> None:
        """`on_disk`: compiled shapes can be read back from disk."""
        self._weights_bytes, self._on_disk = weights_bytes, on_disk
        self._cached: LruCache[Compiled] = LruCache(_limits["shapes"])

    def __call__(self, key: str, make: Callable[[], Compiled], *, releases_last: bool = True) -> Compiled:
        """Return the compiled shape of this key; call `make` if the cache does not have it.

        By default the shape before it frees its activation buffers.
        """
        last, compiled = self._cached.last, self._cached.get(key)
        if releases_last and last is not None and last is not compiled:
            last.release()
        if compiled is None:
            self._cached.trim(self._room() - 1)
            compiled = make()
            self._cached.put(key, compiled)
            while len(self._cached) > _MIN_SHAPES and self._on_disk and self.estimated_bytes() > _limits["bytes"]:
                self._cached.trim(len(self._cached) - 1)
            trim_heap()
        return compiled

    def clear(self) -> None:
        """Drop all shapes."""
        self._cached.clear()

    def __len__(self) -> int:
        """The number of cached shapes."""
        return len(self._cached)

    def _room(self) -> int:
        """Return how many shapes fit, by the free memory."""
        free = available_bytes()
        most = _limits["shapes"]
        return most if free is None else max(1, min(most, free // 4 // max(1, self._weights_bytes)))

    def estimated_bytes(self) -> int:
        """Estimate the memory of the cached shapes: their weights, and the scratch memory of their kernels."""
        streams = [request for each in self._cached.values() for request in each.requests]
        copies = len(self._cached) + _COPIES_PER_STREAM * len(streams)
        return self._weights_bytes * copies + _SCRATCH * sum(request.tensor_bytes for request in streams)
