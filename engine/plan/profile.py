"""The sizes of a plan: minimum, optimum and maximum of batch, height and width, as in a TensorRT profile.

A batch counts images. Height and width are in pixels. `Profile.sizes` computes the sizes of a component's symbolic
dimensions (latents, tokens). Knows nothing of networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError
from ..errors.schema import Check, mismatch


@dataclass(frozen=True, kw_only=True)
class Range:
    """The range of one size: minimum, optimum (the default of a call) and maximum."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            expected = "min:opt:max with 1 <= min <= opt <= max, for example 512:768:1024"
            raise InputError(f"invalid range {self}: expected {expected}.", got=str(self), expected=expected)

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The sizes that a plan serves.

    Height and width must be multiples of `multiple` pixels. `factor` is the number of pixels per latent along each side
    (8 for every Stable Diffusion autoencoder). `tokens` is the context length of the text encoders. Under guidance the
    U-Net gets `rows` rows for each image. `images` are the most groups of image prompts, and tokens of a group, that an
    engine serves; graphs serve any. `frames` are those of a clip; None for a model of images.
    """

    batch: Range
    height: Range
    width: Range
    multiple: int
    factor: int = 8
    tokens: int = 77
    rows: int = 2
    images: tuple[int, int] = (1, 1)
    frames: Range | None = None

    def check(self, *, batch: int, height: int, width: int) -> None:
        """Check the sizes of a call: `batch` images of `height` x `width` pixels. Raises `InputError`."""
        for name, value, allowed in (("height", height, self.height), ("width", width, self.width)):
            if not allowed.min <= value <= allowed.max:
                expected = f"from {allowed.min} to {allowed.max} pixels"
                message = f"{name} must be {expected}, got {value} (profile: {self})."
                raise InputError(message, argument=name, got=value, expected=expected)
            if value % self.multiple:
                expected, below = f"a multiple of {self.multiple} pixels", value // self.multiple * self.multiple
                message = f"{name} must be {expected} for this model, got {value}; try {below} or "
                raise InputError(f"{message}{below + self.multiple}.", argument=name, got=value, expected=expected)
        if not self.batch.min <= batch <= self.batch.max:
            expected = f"{self.batch.min} to {self.batch.max} images"
            message = f"a batch must hold {expected}, got {batch} (profile: {self})."
            raise InputError(message, argument="num_images", got=batch, expected=expected)

    def batches(self, count: int, largest: int | None = None) -> list[int]:
        """Return the sizes of the fewest batches for `count` images, of at most `largest`: equal, or one apart."""
        limit = self.batch.max if largest is None else max(self.batch.min, min(largest, self.batch.max))
        number = -(-count // limit)
        return [count // number + (i < count % number) for i in range(number)]

    def __str__(self) -> str:
        frames = f", frames {self.frames}" if self.frames else ""
        return f"batch {self.batch}, height {self.height}, width {self.width}, multiples of {self.multiple} px{frames}"

    def narrowed(
        self, *, batch: Range | None, height: Range | None, width: Range | None, frames: Range | None = None
    ) -> Profile:
        """Return this profile with smaller ranges; None keeps a range. Raises `InputError` for an invalid range."""
        for name, requested in {"batch": batch, "height": height, "width": width, "frames": frames}.items():
            served: Range | None = getattr(self, name)
            if requested is None:
                continue
            if served is None:
                raise InputError("frames needs a video model, and this one makes images.", argument=name)
            if requested.min < served.min or requested.max > served.max:
                message = f"invalid {name} {requested}: this model serves {served}."
                raise InputError(message, argument=name, got=str(requested), expected=str(served))
            if name in ("height", "width") and any(
                s % self.multiple for s in (requested.min, requested.opt, requested.max)
            ):
                expected = f"multiples of {self.multiple} pixels"
                message = f"invalid {name} {requested}: expected {expected}."
                raise InputError(message, argument=name, got=str(requested), expected=expected)
        narrowed = replace(self, batch=batch or self.batch, height=height or self.height, width=width or self.width)
        return replace(narrowed, frames=frames or self.frames)

    def sizes(
        self,
        *,
        batch: int,
        height: int,
        width: int,
        chunks: int = 1,
        images: tuple[int, int] = (1, 1),
        frames: int = 1,
    ) -> dict[str, int]:
        """Return the size of every symbol in the bindings of `networks`, for a prompt of `chunks` x `tokens` tokens.

        `images` are the groups of image prompts, and the tokens of each. `frames` are those of a clip.

        There is a symbol for each level of the U-Net: latent_height_2 is half of latent_height.
        """
        sizes = {"batch": batch, "height": height, "width": width, "tokens": self.tokens * chunks}
        sizes |= {"image_groups": images[0], "image_tokens": images[1], "frames": frames}
        smaller = 1
        while smaller * self.factor <= self.multiple:
            suffix = f"_{smaller}" if smaller > 1 else ""
            sizes[f"latent_height{suffix}"] = height // self.factor // smaller
            sizes[f"latent_width{suffix}"] = width // self.factor // smaller
            smaller *= 2
        return sizes

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a plan's manifest."""
        ranges = {n: str(getattr(self, n)) for n in ("batch", "height", "width", *(["frames"] if self.frames else []))}
        return {
            **ranges,
            "multiple": self.multiple,
            "factor": self.factor,
            "tokens": self.tokens,
            "rows": self.rows,
        } | ({} if self.images == (1, 1) else {"images": list(self.images)})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Profile:
        """Return the profile that `to_json` wrote."""
        ranges = [name for name in ("batch", "height", "width", "frames") if name in data]
        fields: dict[str, Any] = {name: range_from_text(data[name]) for name in ranges}
        fields["images"] = tuple(data.get("images", (1, 1)))
        return cls(**fields, **{name: data[name] for name in ("multiple", "factor", "tokens", "rows")})


def range_from_text(text: str) -> Range:
    """Parse a range: "512" or "512:768:1024". Raises `InputError`."""
    try:
        numbers = [int(part) for part in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3):
        expected = "a number or min:opt:max, for example 512:768:1024"
        raise InputError(f"invalid range {text!r}: expected {expected}.", got=text, expected=expected)
    return Range(min=numbers[0], opt=numbers[len(numbers) // 2], max=numbers[-1])


def size_range(largest: int) -> Check:
    """Return the check of a range in a plan's manifest, of sizes up to `largest`."""

    def check(value: Any, where: str) -> None:
        try:
            valid = isinstance(value, str) and len(value) < 40 and range_from_text(value).max <= largest
        except InputError:
            valid = False
        if not valid:
            mismatch(where, value, f"min:opt:max from 1 to {largest}, for example 512:768:1024")

    return check


def check_profile(profile: Mapping[str, Any]) -> None:
    """Check that the multiple is the factor times a power of two: one halving per level of the U-Net.

    Raises `SchemaError` that names the field.
    """
    levels, rest = divmod(profile["multiple"], profile["factor"])
    for name, value in (("factor", profile["factor"]), ("multiple", levels)):
        if rest or value.bit_count() != 1:
            mismatch(f"profile.{name}", profile[name], "a power of two (multiple: a power of two times factor)")
    for side in ("height", "width"):
        if range_from_text(profile[side]).min < profile["multiple"]:
            mismatch(f"profile.{side}", profile[side], f"sizes of at least {profile['multiple']}, the multiple")
