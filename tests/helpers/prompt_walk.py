"""Follow one call from its arguments to the image: the files that it enters, in order, and the types that it creates.

    python tests/helpers/prompt_walk.py [BACKEND]

A station is a file that the call enters by a call from another file. The ground floor serves every file and is no
station: errors, files on disk, locks and clocks (`system`), and lookups in a plan or a weight. Neither are reads of
properties, lambdas and comprehensions, and generators that go on. A move from one station to the next goes back up if
it enters a folder above, in the order of `test_rooms.py`.

A type is a class of Calotype of which the call creates an instance on the way to the image. The report and the clocks
are not on the way.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

GROUND = ("errors", "files", "plan", "system", "weights")
NOT_ON_THE_WAY = ("report", "system")


class Walk:
    """What one call does. `stations` are module names without "calotype."."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.stations: list[str] = []
        self.types: set[str] = set()
        self._entered: set[FrameType] = set()  # generators, which go on by further call events
        sys.setprofile(self._event)
        try:
            call()
        finally:
            sys.setprofile(None)

    @property
    def moves(self) -> list[tuple[str, str]]:
        """The moves from one station to the next."""
        return list(zip(self.stations, self.stations[1:], strict=False))

    def moves_up(self, folders: Sequence[str]) -> list[tuple[str, str]]:
        """Return the moves that go back up. `folders` are those of the engine from the top down; "" is its own."""

        def floor(station: str) -> int:
            return folders.index(station.rpartition(".")[0].replace(".", "/"))

        return [(old, new) for old, new in self.moves if floor(new) < floor(old)]

    def _event(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call":
            return
        code, module = frame.f_code, _module(frame)
        if code.co_name == "__init__":
            kind = type(frame.f_locals["self"])
            if kind.__module__.startswith("calotype.") and kind.__module__.split(".")[1] not in NOT_ON_THE_WAY:
                self.types.add(f"{kind.__module__.removeprefix('calotype.')}.{kind.__qualname__}")
        if module is None or code.co_filename.startswith("<") or code.co_name.startswith("<"):
            return
        if code.co_flags & inspect.CO_GENERATOR:
            if frame in self._entered:
                return
            self._entered.add(frame)
        caller = _caller(frame)
        if caller == module or _is_property(frame):
            return
        if not self.stations or self.stations[-1] != module:
            self.stations.append(module)


def _module(frame: FrameType) -> str | None:
    """Return the frame's module without "calotype.", or None for other packages and the ground floor."""
    name = str(frame.f_globals.get("__name__", ""))
    module = name.removeprefix("calotype.")
    return None if module == name or module.split(".")[0] in GROUND else module


def _caller(frame: FrameType) -> str | None:
    """Return the module of the nearest caller that is a station's."""
    back = frame.f_back
    while back is not None and _module(back) is None:
        back = back.f_back
    return None if back is None else _module(back)


def _is_property(frame: FrameType) -> bool:
    owner = type(frame.f_locals.get("self"))
    return isinstance(inspect.getattr_static(owner, frame.f_code.co_name, None), property)


def walk_of(backend: str) -> Walk:
    """Return the walk of a second call of the demonstration model, with a compiled scheduler and open networks."""
    import calotype

    pipe = calotype.load("demo", backend=backend)
    arguments = {"steps": 1, "seed": 1, "scheduler": "euler"}
    pipe("something else", **arguments)
    return Walk(lambda: pipe("a red (circle:1.2)", **arguments))


if __name__ == "__main__":
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).resolve().parent]
    walk = walk_of(sys.argv[1] if len(sys.argv) > 1 else "fake")
    print("\n".join(walk.stations))
    print(f"{len(set(walk.stations))} files, {len(walk.moves)} moves between them")
    print("\n".join(sorted(walk.types)))
    print(f"{len(walk.types)} types")
