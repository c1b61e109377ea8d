"""What was worked out before and is likely to be asked for again: the last so many things, and no more."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from . import forks

Value = TypeVar("Value")


class LruCache(Generic[Value]):
    """The values of the keys used last. Threads may share it; two that miss the same key both work it out."""

    def __init__(self, most: int, size: Callable[[Value], int] = lambda _: 1) -> None:
        """`most` is the sum of `size` over what is kept; without `size` it is how many are kept."""
        self._most, self._size = most, size
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = forks.Lock()

    def __call__(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The key's value, made now where it is not remembered; what gives way for it does so before that."""
        found = self.get(key)
        if found is None:
            with self._lock:
                self._trim(self._most - 1)
            found = make()
            self.put(key, found)
        return found

    def get(self, key: Hashable) -> Value | None:
        """The key's value, or None."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key]

    def put(self, key: Hashable, value: Value) -> None:
        """Remember it, and forget what was not asked for for longest. The newest stays, however large it is."""
        with self._lock:
            self._values.pop(key, None)
            self._trim(self._most - self._size(value))
            self._values[key] = value

    @property
    def size(self) -> int:
        """The sum of the sizes of what is kept now."""
        return sum(map(self._size, self._values.values()))

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._values.clear()

    def __len__(self) -> int:
        """How many are kept now."""
        return len(self._values)

    def _trim(self, most: int) -> None:
        while self._values and self.size > most:
            self._values.popitem(last=False)
