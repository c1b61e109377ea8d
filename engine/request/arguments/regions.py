"""The arguments of a call that give areas of the image prompts of their own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .argument import argument

if TYPE_CHECKING:  # the command line reads this table, and imports neither numpy nor PIL for it
    from ...images.arrays import Images


@dataclass(frozen=True, kw_only=True)
class RegionArguments:
    """Regional prompts. Each field has its text."""

    region_prompts: str | Sequence[str] | None = argument(
        "A prompt for each region of the image, in addition to `prompt` for the whole.",
        "A text, or a list with one for each mask of `region_masks`. At each step the U-Net runs with every prompt, "
        "and its outputs are joined by the masks (MultiDiffusion, Bar-Tal et al. 2023, arXiv 2302.08113). With "
        "guidance, n regions cost (2 + n) / 2 of the time. The negative prompt is that of the whole image.",
        default=None,
        option=list[str],
        key="region_prompts",
        read=json.loads,
    )
    region_masks: Images = argument(
        "A mask for each of `region_prompts`: white is its region.",
        "In the types of `mask_image`; resized to the output size. Gray mixes, regions that overlap share, and "
        "`prompt` describes what no mask covers.",
        default=None,
        option=list[Path],
    )
    region_strength: float = argument(
        "How much of a region its own prompt describes, 0 to 1; `prompt` has the rest.",
        "Below 1, regions fit together better, and follow their prompts less.",
        default=1.0,
        option=float,
        key="region_strength",
        read=float,
    )
