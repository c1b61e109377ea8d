"""LRU cache in memory, limited by the number or the total size of its values."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from . import forks

Value = TypeVar("Value")


class LruCache(Generic[Value]):
    """The values of the most recently used keys. Threads may share it; two that miss a key both create its value."""

    def __init__(self, maxsize: int, size: Callable[[Value], int] = lambda _: 1) -> None:
        """`maxsize` limits the sum of `size` over all values; the default counts the values."""
        self._maxsize, self._size = maxsize, size
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = forks.Lock()

    def __call__(self, key: Hashable, create: Callable[[], Value]) -> Value:
        """Return the key's value. Create it if it is missing, after evicting others to free space for it."""
        value = self.get(key)
        if value is None:
            self.trim(self._maxsize - 1)
            value = create()
            self.put(key, value)
        return value

    def get(self, key: Hashable) -> Value | None:
        """Return the key's value, or None."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key]

    def put(self, key: Hashable, value: Value) -> None:
        """Store a value and evict the least recently used ones. The new value stays even if it exceeds the limit."""
        with self._lock:
            self._values.pop(key, None)
            self._trim(self._maxsize - self._size(value))
            self._values[key] = value

    def trim(self, limit: int) -> None:
        """Evict the least recently used values until the sum of the sizes is at most `limit`."""
        with self._lock:
            self._trim(limit)

    @property
    def last(self) -> Value | None:
        """The most recently used value, or None."""
        return next(reversed(self._values.values()), None)

    def values(self) -> list[Value]:
        """Return all values, the most recently used one last."""
        return list(self._values.values())

    @property
    def size(self) -> int:
        """The sum of the sizes of all values."""
        return sum(map(self._size, self._values.values()))

    def clear(self) -> None:
        """Remove all values."""
        with self._lock:
            self._values.clear()

    def __len__(self) -> int:
        """Return the number of values."""
        return len(self._values)

    def _trim(self, limit: int) -> None:
        while self._values and self.size > limit:
            self._values.popitem(last=False)
