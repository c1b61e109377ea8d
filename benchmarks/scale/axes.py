"""The axes along which work grows, as data: pixels, batch, steps, chunks of a prompt, ControlNets and LoRAs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Work:
    """The work of one image or batch. `size` is the side of an image in pixels."""

    size: int
    batch: int = 1
    steps: int = 4
    chunks: int = 1
    controlnets: int = 0
    loras: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis: the works along it, and the number that grows. A network is counted with the U-Net: 1 + networks."""

    name: str
    works: tuple[Work, ...]
    amounts: tuple[int, ...]


# The field of `Work`, and its values. Pixels are the square of the size.
_VALUES: Mapping[str, tuple[str, Sequence[int]]] = {
    "pixels": ("size", (256, 384, 512, 768, 1024)),
    "batch": ("batch", (1, 2, 4, 8)),
    "steps": ("steps", (2, 4, 8, 16)),
    "prompt chunks": ("chunks", (1, 2, 4, 8)),
    "1 + ControlNets": ("controlnets", (0, 1, 2, 3)),
    "1 + LoRAs": ("loras", (0, 1, 2, 4)),
}
AXES = tuple(_VALUES)


def axis(name: str, base: Work, values: Sequence[int] | None = None) -> Axis:
    """Return the axis of a name, from `base`; `values` in place of the usual ones."""
    field, usual = _VALUES[name]
    values = tuple(values or usual)
    works = tuple(replace(base, **{field: value}) for value in values)
    amounts = {"pixels": [v * v for v in values], "1 + ControlNets": [1 + v for v in values]}
    amounts["1 + LoRAs"] = amounts["1 + ControlNets"]
    return Axis(name=name, works=works, amounts=tuple(amounts.get(name, values)))
