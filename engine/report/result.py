"""What a call returns: its images and report, or an event for each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..images.png import GeneratedImage
from .report import Report


@dataclass(frozen=True, kw_only=True)
class Result:
    """Result of a call: the images (or arrays, by `output_type`), their seeds, and the report."""

    images: Any  # list[GeneratedImage], float32 [N, H, W, 3] in [0, 1], or latents float32 [N, C, h, w]
    seeds: tuple[int, ...]
    report: Report


@dataclass(frozen=True, kw_only=True)
class Event:
    """End of one step. The last event of a stream carries the `result`.

    `preview()` decodes the images that this step predicts. It costs one run of the VAE decoder. Call it before you take
    the next event.
    """

    step: int
    total: int
    preview: Callable[[], list[GeneratedImage]]
    result: Result | None = None
