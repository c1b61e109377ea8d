"""The arguments of a call whose images share one style (Style Aligned)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .argument import argument

if TYPE_CHECKING:  # the command line reads this table, and imports neither numpy nor PIL for it
    from ...images.arrays import Images


@dataclass(frozen=True, kw_only=True)
class StyleArguments:
    """A style for all images of a call. Each field has its text."""

    style_aligned: bool = argument(
        "Give all images of the call the style of the first one, or of `style_image` (Style Aligned).",
        "Self-attention sees the reference too, and takes over the statistics of its queries and keys (Hertz et al. "
        "2023, arXiv 2312.02133). Load the model with `style_aligned=True`. All images run in one batch.",
        default=False,
        option=bool,
    )
    style_image: Images = argument(
        "An image whose style all images of the call take, with `style_aligned`.",
        "One, in the types of `image`. DDIM inversion turns it into noise along the schedule of the call, which takes "
        "as many calls of the U-Net as the call has timesteps.",
        default=None,
        option=Path,
    )
    style_prompt: str | None = argument(
        "Text that describes `style_image`.",
        "The better it describes image and style, the more of the style the images take over. The default is the "
        "empty prompt.",
        default=None,
        option=str,
    )
