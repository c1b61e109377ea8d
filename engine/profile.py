"""How large the pictures may be: the least, the usual and the most of each symbolic size.

Batches count pictures, heights and widths are pixels. Knows nothing of networks; what a component's own symbols
come to (latents, guidance halves) is said by `Profile.sizes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from calotype.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Range:
    """The least, the usual and the most of one size."""

    low: int
    usual: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.usual <= self.high:
            raise InputError(f"a range must rise: got {self}; write it as least:usual:most, as in 512:768:1024.")

    def __str__(self) -> str:
        return f"{self.low}:{self.usual}:{self.high}"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The sizes that a plan serves. `multiple` is what height and width must divide by, in pixels.

    `factor` is how many pixels one latent is wide (8 for every Stable Diffusion autoencoder).
    """

    batch: Range
    height: Range
    width: Range
    multiple: int
    factor: int = 8

    def check(self, *, batch: int, height: int, width: int) -> None:
        """`InputError` with what is allowed, where a size is outside."""
        for name, value, allowed in (("height", height, self.height), ("width", width, self.width)):
            if not allowed.low <= value <= allowed.high:
                raise InputError(f"{name} must be from {allowed.low} to {allowed.high} pixels, got {value}.")
            if value % self.multiple:
                below = value // self.multiple * self.multiple
                raise InputError(
                    f"{name} must be a multiple of {self.multiple} pixels for this model, got {value}; "
                    f"try {below} or {below + self.multiple}."
                )
        if not self.batch.low <= batch <= self.batch.high:
            raise InputError(
                f"a batch may hold {self.batch.low} to {self.batch.high} pictures, got {batch}; "
                "ask for the rest in further calls."
            )

    def sizes(self, *, batch: int, height: int, width: int) -> dict[str, int]:
        """The values of every symbol that the bindings of `family` use, for one call."""
        return {
            "batch": batch,
            "height": height,
            "width": width,
            "latent_height": height // self.factor,
            "latent_width": width // self.factor,
        }

    def to_json(self) -> dict[str, Any]:
        """As plain data, for a plan's manifest."""
        ranges = {n: str(getattr(self, n)) for n in ("batch", "height", "width")}
        return {**ranges, "multiple": self.multiple, "factor": self.factor}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Profile:
        """The inverse of `to_json`."""
        ranges = {n: _range_from_text(data[n]) for n in ("batch", "height", "width")}
        return cls(**ranges, multiple=data["multiple"], factor=data["factor"])


def _range_from_text(text: str) -> Range:
    low, usual, high = (int(part) for part in text.split(":"))
    return Range(low=low, usual=usual, high=high)
