"""`Request`: the arguments of a call, with their defaults. `resolve` checks them against a plan.

Their table has parts by topic, and the size and type of the output, which are here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from ..errors.validation import check_names
from .arguments.argument import argument
from .arguments.hires import HiresArguments
from .arguments.image import ImageArguments, OneOrMore
from .arguments.perturbed import PerturbedArguments
from .arguments.regions import RegionArguments
from .arguments.sampling import CallsFrom, SamplingArguments
from .arguments.style import StyleArguments
from .arguments.text import TextArguments
from .arguments.video import VideoArguments
from .diffusers_names import OF_CALLS, with_our_names

__all__ = ["CallsFrom", "OneOrMore", "OutputType", "Request", "parse_request"]

OutputType = Literal["pil", "np", "pt", "latent"]


@dataclass(frozen=True, kw_only=True)
class Request(
    VideoArguments,
    HiresArguments,
    StyleArguments,
    PerturbedArguments,
    ImageArguments,
    SamplingArguments,
    RegionArguments,
    TextArguments,
):
    """Arguments of one call, as the caller passed them. The reference page lists them; each field has its text."""

    width: int | None = argument(
        "Width in pixels.",
        "The default is the width of `image`, or else of `control_image` or `adapter_image`, rounded down to the "
        "model's multiple; without these, the model's.",
        default=None,
        option=int,
        shown_default="the model's",
        key="width",
        read=int,
        required=True,
    )
    height: int | None = argument(
        "Height in pixels.",
        "The default is chosen as that of `width`.",
        default=None,
        option=int,
        shown_default="the model's",
        key="height",
        read=int,
        required=True,
    )
    num_images: int = argument(
        "Images to generate for each prompt; image i uses seed + i.",
        "At most 1000 images a call. More than the model takes at once (32, or a plan's batch) run in several batches.",
        default=1,
        option=int,
    )
    output_type: OutputType = argument(
        '"pil" for PIL images, "np" for float32 [N, H, W, 3] in [0, 1], "latent" for float32 [N, C, h, w].',
        '"pt" is a tensor of torch, float32 [N, 3, H, W] in [0, 1]. Arrays of a video model have the frames as second '
        "axis, [N, F, ...].",
        default="pil",
    )
    progress: bool = argument(
        "Show a progress bar while the call runs.",
        "In a terminal on stderr, in a notebook below the cell. `stream` shows none: it returns each step.",
        default=False,
    )

    def sets(self, part: Any) -> bool:
        """Return whether an argument of this part of the table is another object than its default."""
        return any(getattr(self, each.name) is not each.default for each in fields(part))


def parse_request(prompt: Any, arguments: Mapping[str, Any]) -> Request:
    """Return the request of a call's arguments, by our names or diffusers'. Raises `InputError` for an unknown one."""
    named = with_our_names(arguments)
    check_names(named, [field.name for field in fields(Request)], OF_CALLS)
    return Request(prompt=prompt, **named)
