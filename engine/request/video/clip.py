"""The clip that a call asks for: checked, with the defaults of diffusers' pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...errors.validation import check_float, check_int
from ...images.arrays import Pixels
from ...images.video import load_frames
from ...plan.plan import Plan
from ..arguments.video import VideoArguments

Floats = NDArray[np.float32]

_MAX_FPS, _MAX_BUCKET, _MAX_NOISE, _MAX_SCALE = 1000, 1023, 10, 100
_MOTION_FPS = 8  # of AnimateDiff's training
_DEFAULTS: Mapping[str, Any] = {
    **{"fps": 7, "motion_bucket_id": 127, "noise_aug_strength": 0.02},
    **{"min_guidance_scale": 1.0, "max_guidance_scale": 3.0},
}


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """The clip of a prompt or an input image. The attributes are the arguments of these names."""

    frames: int
    fps: int
    decode_chunk_size: int | None


@dataclass(frozen=True, kw_only=True)
class ImageClip(ClipSettings):
    """The clip of an input image, of a video model."""

    motion_bucket_id: int
    noise_aug_strength: float
    min_guidance_scale: float
    max_guidance_scale: float

    @property
    def guidance_scale(self) -> float:
        """The largest scale of a frame."""
        return max(self.min_guidance_scale, self.max_guidance_scale)

    @property
    def guidance_scales(self) -> Floats:
        """The scale of each frame.  # [F, 1, 1, 1]"""
        scales = np.linspace(self.min_guidance_scale, self.max_guidance_scale, self.frames)
        return scales.astype(np.float32)[:, None, None, None]

    @property
    def added_time_ids(self) -> tuple[float, float, float]:
        """The U-Net's numbers for the motion. It was trained with the frames per second less one."""
        return float(self.fps - 1), float(self.motion_bucket_id), self.noise_aug_strength


def clip_of(plan: Plan, arguments: Any, frames_of_input: int = 0) -> ClipSettings:
    """Return the clip of a request, whose fields are `arguments`, to a model of clips. Raises `InputError`.

    `frames_of_input` are those of an input clip; 0 without one.
    """
    passed = {field.name: getattr(arguments, field.name) for field in fields(VideoArguments)}
    assert plan.profile.frames is not None  # the plan makes clips
    served, chunk = plan.profile.frames, passed["decode_chunk_size"]
    values: dict[str, Any] = {name: _DEFAULTS.get(name) if value is None else value for name, value in passed.items()}
    frames: Any = frames_of_input or (served.opt if passed["frames"] is None else passed["frames"])
    fps = _MOTION_FPS if plan.animates and passed["fps"] is None else values["fps"]
    common: dict[str, Any] = {
        "frames": check_int("frames", frames, served.min, served.max),
        "fps": check_int("fps", fps, 1, _MAX_FPS),
        "decode_chunk_size": None if chunk is None else check_int("decode_chunk_size", chunk, 1, 1 << 20),
    }
    if plan.animates:
        return ClipSettings(**common)
    return ImageClip(
        **common,
        motion_bucket_id=check_int("motion_bucket_id", values["motion_bucket_id"], 0, _MAX_BUCKET),
        noise_aug_strength=check_float("noise_aug_strength", values["noise_aug_strength"], _MAX_NOISE),
        min_guidance_scale=check_float("min_guidance_scale", values["min_guidance_scale"], _MAX_SCALE),
        max_guidance_scale=check_float("max_guidance_scale", values["max_guidance_scale"], _MAX_SCALE),
    )


def input_clip(plan: Plan, arguments: Any) -> list[Pixels]:
    """Return the frames of the argument `video`, for motion modules; none without it. Raises `InputError`.

    # F x [H, W, 3]
    """
    if arguments.video is None or not plan.animates or plan.profile.frames is None:
        return []
    most, frames = plan.profile.frames.max, arguments.frames
    return load_frames(arguments.video, None if frames is None else check_int("frames", frames, 1, most), most)


def check_no_text_guidance(guidance_scale: Any, default: float, method: str) -> None:
    """Raise `InputError` for settings of guidance that a video model does not take."""
    if guidance_scale != default:
        raise InputError(
            "a video model has a guidance scale for each frame. Use min_guidance_scale= and max_guidance_scale=.",
            argument="guidance_scale",
            got=guidance_scale,
        )
    if method != "cfg":
        message = f"a video model takes guidance_method='cfg' only; got {method}."
        raise InputError(message, argument="guidance_method", got=method)
