"""The arguments of a call that make its image larger: a second pass at another size (hires fix)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .argument import argument


@dataclass(frozen=True, kw_only=True)
class HiresArguments:
    """The second pass. Each field has its text."""

    hires: float | None = argument(
        "Generate again at a size this many times larger, from the enlarged image (hires fix).",
        "1 to 8. The sides are rounded to the model's multiple; `width` and `height` are those of the first pass. It "
        "is the same as a second call with the enlarged image as `image`.",
        default=None,
        option=float,
        key="hires",
        read=float,
    )
    hires_strength: float | None = argument(
        "How much the second pass of `hires` may change the enlarged image, 0 to 1.",
        default=None,
        option=float,
        shown_default="0.3; for latent 0.5",
        key="hires_strength",
        read=float,
    )
    hires_steps: int | None = argument(
        "Steps that the second pass of `hires` runs.",
        "1 to 1000.",
        default=None,
        option=int,
        shown_default="hires_strength x steps",
        key="hires_steps",
        read=int,
    )
    hires_upscaler: Any = argument(
        "How `hires` enlarges the image: latent, lanczos, or the file of an ESRGAN upscaler.",
        "lanczos resizes pixels, latent resizes latents and skips the VAE.",
        default=None,
        option=str,
        shown_default="lanczos",
        key="hires_upscaler",
    )
