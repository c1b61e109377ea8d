"""`Request`: the arguments of a call, with their defaults. `resolve` checks them against a plan.

Their table has four parts by topic, and the size and type of the output, which are here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from ..errors.validation import check_names
from .argument import argument
from .hires_arguments import HiresArguments
from .image_arguments import ImageArguments, OneOrMore
from .sampling_arguments import CallsFrom, SamplingArguments
from .text_arguments import TextArguments

__all__ = ["CallsFrom", "OneOrMore", "OutputType", "Request", "parse_request"]

OutputType = Literal["pil", "np", "latent"]


@dataclass(frozen=True, kw_only=True)
class Request(HiresArguments, ImageArguments, SamplingArguments, TextArguments):
    """Arguments of one call, as the caller passed them. The reference page lists them; each field has its text."""

    width: int | None = argument(
        "Width in pixels.",
        "The default is the width of `image`, or else of `control_image`, rounded down to the model's multiple; "
        "without both, the model's.",
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
        default="pil",
    )
    progress: bool = argument(
        "Show a progress bar while the call runs.",
        "In a terminal on stderr, in a notebook below the cell. `stream` shows none: it returns each step.",
        default=False,
    )


_DIFFUSERS_NAMES = {"num_inference_steps": "steps", "num_images_per_prompt": "num_images", "generator": "seed"}
_HINTS = {theirs: f"The nearest: {ours}." for theirs, ours in _DIFFUSERS_NAMES.items()}


def parse_request(prompt: Any, arguments: Mapping[str, Any]) -> Request:
    """Return the request of a call's arguments. Raises `InputError` with the nearest name for an unknown argument."""
    check_names(arguments, [field.name for field in fields(Request)], _HINTS)
    return Request(prompt=prompt, **arguments)
