"""What a call returns: its images and report, or an event for each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..images.png import GeneratedImage
from .report import Report


@dataclass(frozen=True, kw_only=True)
class Result:
    """Result of a call.

    Attributes:
        images: By `output_type`: a list of PIL images ("pil"), which keep their settings when they are saved as PNG;
            float32 [N, H, W, 3] in [0, 1] ("np"); or latents float32 [N, C, h, w] ("latent").
        seeds: The seed of each image.
        report: What the call did.
    """

    images: Any
    seeds: tuple[int, ...]
    report: Report


@dataclass(frozen=True, kw_only=True)
class Event:
    """End of one step of a stream.

    Attributes:
        step: The number of U-Net calls so far, from 1. Most schedulers call the U-Net once a step.
        total: The number of U-Net calls.
        preview: A function that decodes the images that this step predicts, as PIL images. It costs one run of the VAE
            decoder. Call it before you take the next event.
        result: The result of the call; None before the last step.
    """

    step: int
    total: int
    preview: Callable[[], list[GeneratedImage]]
    result: Result | None = None
