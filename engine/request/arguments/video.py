"""The arguments of a call that makes a clip: its frames, their motion and their guidance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .argument import argument


@dataclass(frozen=True, kw_only=True)
class VideoArguments:
    """A clip of a video model, or of one with motion modules. Each field has its text."""

    frames: int | None = argument(
        "Frames of the clip, for a video model, or one with motion modules.",
        "1 to 128. diffusers names it num_frames.",
        default=None,
        option=int,
        shown_default="the model's",
        key="frames",
        read=int,
    )
    video: Any = argument(
        "A clip that motion modules change: video to video, with `strength`.",
        "A file (.gif, .webp, .mp4, .webm), a `Video`, or its frames: a list of images, or an array [F, H, W, 3] or "
        "tensor [F, 3, H, W]. They are resized to the output size, by default theirs. `frames` takes the first ones.",
        default=None,
        option=Path,
    )
    fps: int | None = argument(
        "Frames per second: an input of a video model, and the rate of a saved file.",
        "1 to 1000. Stable Video Diffusion was trained with 6 and more. Motion modules do not take it: 8 by default.",
        default=None,
        option=int,
        shown_default="7",
        key="fps",
        read=int,
    )
    motion_bucket_id: int | None = argument(
        "How much moves in the clip: higher is more.",
        "0 to 1023. Stable Video Diffusion was trained with 1 to 255.",
        default=None,
        option=int,
        shown_default="127",
        key="motion_bucket_id",
        read=int,
    )
    noise_aug_strength: float | None = argument(
        "Noise on the input image: more noise gives more motion, and less of the image.",
        "0 to 10.",
        default=None,
        option=float,
        shown_default="0.02",
        key="noise_aug_strength",
        read=float,
    )
    min_guidance_scale: float | None = argument(
        "Guidance of the first frame of a clip; it changes evenly to that of the last one.",
        "0 to 100. A video model takes it in place of `guidance_scale`.",
        default=None,
        option=float,
        shown_default="1",
        key="min_guidance_scale",
        read=float,
    )
    max_guidance_scale: float | None = argument(
        "Guidance of the last frame of a clip.",
        "0 to 100. If neither scale is above 1, the U-Net runs once a step.",
        default=None,
        option=float,
        shown_default="3",
        key="max_guidance_scale",
        read=float,
    )
    decode_chunk_size: int | None = argument(
        "Frames that the VAE decodes at once.",
        "1 or more. Smaller chunks take less memory. Those of Stable Video Diffusion flicker more: its decoder mixes "
        "the frames that it sees. By default all frames, or as many as the free memory allows.",
        default=None,
        option=int,
        shown_default="by the free memory",
        key="decode_chunk_size",
        read=int,
    )
