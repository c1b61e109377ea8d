"""How large the pictures may be: the least, the usual and the most of each symbolic size.

Batches count pictures, heights and widths are pixels. Knows nothing of networks; what a component's own symbols
come to (latents, guidance halves) is said by `Profile.sizes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError


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

    `factor` is how many pixels one latent is wide (8 for every Stable Diffusion autoencoder); `tokens` how many the
    text encoders take at a time.
    """

    batch: Range
    height: Range
    width: Range
    multiple: int
    factor: int = 8
    tokens: int = 77

    def check(self, *, batch: int, height: int, width: int) -> None:
        """`InputError` with what is allowed, where a size is outside."""
        for name, value, allowed in (("height", height, self.height), ("width", width, self.width)):
            if not allowed.low <= value <= allowed.high:
                raise InputError(
                    f"{name} must be from {allowed.low} to {allowed.high} pixels, got {value} (profile: {self})."
                )
            if value % self.multiple:
                below = value // self.multiple * self.multiple
                raise InputError(
                    f"{name} must be a multiple of {self.multiple} pixels for this model, got {value}; "
                    f"try {below} or {below + self.multiple}."
                )
        if not self.batch.low <= batch <= self.batch.high:
            raise InputError(
                f"a batch may hold {self.batch.low} to {self.batch.high} pictures, got {batch} (profile: {self}); "
                "ask for the rest in further calls."
            )

    def __str__(self) -> str:
        return f"batch {self.batch}, height {self.height}, width {self.width}, multiples of {self.multiple} px"

    def narrowed(self, *, batch: Range | None, height: Range | None, width: Range | None) -> Profile:
        """The part of this profile that was asked for; None is all of it. `InputError` where it reaches outside."""
        asked = {"batch": batch, "height": height, "width": width}
        for name, said in asked.items():
            whole: Range = getattr(self, name)
            if said is None:
                continue
            if said.low < whole.low or said.high > whole.high:
                raise InputError(f"{name} {said} reaches outside of what this model serves, {whole}.")
            if name != "batch" and any(size % self.multiple for size in (said.low, said.usual, said.high)):
                raise InputError(f"{name} {said}: this model's sizes are multiples of {self.multiple} pixels.")
        return replace(self, batch=batch or self.batch, height=height or self.height, width=width or self.width)

    def sizes(self, *, batch: int, height: int, width: int, chunks: int = 1) -> dict[str, int]:
        """The values of every symbol that the bindings of `networks` use, for one call with so many chunks of text.

        Beside the latents' own there is one for each level of the U-Net: latent_height_2 is half of latent_height.
        """
        sizes = {"batch": batch, "height": height, "width": width, "tokens": self.tokens * chunks}
        smaller = 1
        while smaller * self.factor <= self.multiple:
            suffix = f"_{smaller}" if smaller > 1 else ""
            sizes[f"latent_height{suffix}"] = height // self.factor // smaller
            sizes[f"latent_width{suffix}"] = width // self.factor // smaller
            smaller *= 2
        return sizes

    def to_json(self) -> dict[str, Any]:
        """As plain data, for a plan's manifest."""
        ranges = {n: str(getattr(self, n)) for n in ("batch", "height", "width")}
        return {**ranges, "multiple": self.multiple, "factor": self.factor, "tokens": self.tokens}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Profile:
        """The inverse of `to_json`."""
        ranges = {n: range_from_text(data[n]) for n in ("batch", "height", "width")}
        return cls(**ranges, multiple=data["multiple"], factor=data["factor"], tokens=data["tokens"])


def range_from_text(text: str) -> Range:
    """A range from "512" or "512:768:1024". Raises `InputError`."""
    try:
        numbers = [int(part) for part in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3):
        raise InputError(f"{text!r} is no range; write one number, or least:usual:most, as in 512:768:1024.")
    return Range(low=numbers[0], usual=numbers[len(numbers) // 2], high=numbers[-1])
