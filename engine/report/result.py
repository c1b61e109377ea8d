"""What a call returns: its images and report, or an event for each step."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from ..images.png import GeneratedImage
from ..images.video import Video
from .report import Report


@dataclass(frozen=True, kw_only=True, repr=False)
class Result:
    """Result of a call.

    Attributes:
        images: By `output_type`: a list of PIL images ("pil"), which keep their settings when they are saved as PNG;
            float32 [N, H, W, 3] in [0, 1] ("np"); a tensor of torch, float32 [N, 3, H, W] in [0, 1] ("pt"); or latents,
            float32 [N, C, h, w] ("latent").
        seeds: The seed of each image.
        report: What the call did.
        videos: The clips of a video model, one for each seed. `images` then has their frames: "pil" in one list, "np"
            as float32 [N, F, H, W, 3], "pt" [N, F, 3, H, W], "latent" [N, F, C, h, w].
    """

    images: Any
    seeds: tuple[int, ...]
    report: Report
    videos: tuple[Video, ...] = ()

    @property
    def frames(self) -> Any:
        """The frames of each clip, as diffusers names them: lists of PIL images, or the array of `images`."""
        return [list(video.frames) for video in self.videos] if isinstance(self.images, list) else self.images

    def __repr__(self) -> str:
        count, seeds = len(self.seeds), ", ".join(map(str, self.seeds[:8])) + (", ..." if len(self.seeds) > 8 else "")
        kind = f"{type(self.images).__name__} {list(self.images.shape)}" if hasattr(self.images, "shape") else ""
        size = kind or " x ".join(map(str, self.images[0].size)) + " pixels"
        total, noun = sum(self.report.seconds.values()), "clip" if self.videos else "image"
        return f"Result({count} {noun}{'s' * (count > 1)}, {size}, seed{'s' * (count > 1)} {seeds}, {total:.2f} s)"

    def _repr_html_(self) -> str:
        from .notebook import images_as_html, report_as_html

        shown = images_as_html(self.images, self.seeds) if isinstance(self.images, list) else repr(self)
        shown = "".join(video._repr_html_() for video in self.videos) or shown
        return f"{shown}<details><summary>report</summary>{report_as_html(self.report)}</details>"


def joined(results: Sequence[Result]) -> Result:
    """Return the results of a call's batches as one. The last report has the seconds and notes of all."""
    images, report = [each.images for each in results], results[-1].report
    seeds = tuple(seed for each in results for seed in each.seeds)
    sizes = [len(each.seeds) for each in results]
    videos = tuple(video for each in results for video in each.videos)
    note = f"{len(seeds)} {'clips' if videos else 'images'} ran in {len(results)} batches of at most {max(sizes)}"
    calls = sum(each.report.network_calls for each in results)
    notes = dict.fromkeys([note, *(note for each in results for note in each.report.notes)])
    report = replace(report, network_calls=calls, notes=tuple(notes))
    every = list(chain.from_iterable(images)) if isinstance(images[0], list) else _concatenated(images)
    return Result(images=every, seeds=seeds, report=report, videos=videos)


def _concatenated(arrays: Sequence[Any]) -> Any:
    """Return arrays of numpy, or tensors of torch, as one."""
    return importlib.import_module(type(arrays[0]).__module__.partition(".")[0]).concatenate(arrays)


@dataclass(frozen=True, kw_only=True)
class Event:
    """End of one step of a stream.

    Attributes:
        step: The number of U-Net calls so far, from 1. Most schedulers call the U-Net once a step. Images beyond the
            profile's largest batch run as further batches, whose steps count on.
        total: The number of U-Net calls.
        preview: A function that decodes the images that this step predicts, as PIL images: those of the batch that
            runs. It costs one run of the VAE decoder. Call it before you take the next event.
        result: The result of the call; None before the last step.
    """

    step: int
    total: int
    preview: Callable[[], list[GeneratedImage]]
    result: Result | None = None
