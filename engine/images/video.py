"""Generated clips: frames with a rate, written as MP4, WebM, GIF or WebP.

PyAV encodes MP4 and WebM as VP9 by libvpx, which has a BSD license; Pillow writes GIF and WebP.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from ..errors import InputError, first_line
from ..errors.validation import check_float, check_int
from .arrays import Pixels, as_list, load_image_array
from .output import MOVIES, folder_fault, is_clip_only
from .output import SUFFIXES as IMAGES
from .png import GeneratedImage

SUFFIXES = (*MOVIES, ".gif", ".webp")  # by PyAV, and by Pillow
QUALITY = 80  # from 1 to 100
_ENCODER, _WORST = "libvpx-vp9", 63  # and its worst quantizer
_BT709 = 1  # of FFmpeg's color spaces, primaries and transfer curves
_MAX_FPS = 1000
_SHOWN = 384  # pixels of the longer side in a notebook


@dataclass(frozen=True, kw_only=True, repr=False)
class Video:
    """A clip of a video model.

    Attributes:
        frames: Its frames as PIL images, which keep their settings when they are saved.
        fps: Frames per second.
    """

    frames: tuple[GeneratedImage, ...]
    fps: int

    @property
    def array(self) -> NDArray[np.uint8]:
        """The frames as bytes.  # uint8 [F, H, W, 3]"""
        return np.stack([np.asarray(frame) for frame in self.frames])

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.frames[0].size

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[GeneratedImage]:
        return iter(self.frames)

    def __repr__(self) -> str:
        width, height = self.size
        return f"Video({len(self)} frames, {width} x {height} pixels, {self.fps} frames per second)"

    def save(self, path: str | Path, *, fps: float | None = None, quality: int | None = None) -> None:
        """Write the clip as a file.

        Args:
            path: A file that ends in .mp4 or .webm (VP9, by PyAV: pip install 'calotype[video]'), .gif or .webp.
            fps: Frames per second, 0.1 to 1000; those of the clip by default. A GIF rounds to hundredths of a second.
            quality: 1 to 100, 80 by default; a GIF has none.

        Raises:
            InputError: The file cannot be written, an argument is invalid, or PyAV is not installed.
        """
        path = Path(path)
        check_video_output(path)
        rate = float(self.fps) if fps is None else check_float("fps", fps, _MAX_FPS, low=0.1)
        quality = QUALITY if quality is None else check_int("quality", quality, 1, 100)
        write = _write_movie if path.suffix.lower() in MOVIES else _write_animation
        try:
            write(self, path, rate, quality)
        except (OSError, ValueError) as failed:  # ValueError: the format has no images of this size
            reason = getattr(failed, "strerror", None) or first_line(failed)
            raise InputError(f"cannot write {path}: {reason}.", argument="path") from None

    def _repr_html_(self) -> str:
        small, options = io.BytesIO(), {"duration": round(1000 / self.fps), "loop": 0, "save_all": True}
        frames = [Image.fromarray(np.asarray(frame)) for frame in self.frames]  # without settings
        for frame in frames:
            frame.thumbnail((_SHOWN, _SHOWN))
        frames[0].save(small, "WEBP", append_images=frames[1:], **options)
        return f'<img src="data:image/webp;base64,{base64.b64encode(small.getvalue()).decode()}">'


def load_frames(value: Any, frames: int | None, most: int) -> list[Pixels]:
    """Return the frames of an input clip, or the first `frames` of them.

    # a file, a `Video`, a list of images, [F, H, W, 3], or a tensor [F, 3, H, W] -> F x [H, W, 3]

    Raises:
        InputError: it is no clip, has fewer frames, or has more than `most`.
    """
    limit = most + 1 if frames is None else frames
    images = value.frames if isinstance(value, Video) else value
    if isinstance(value, (str, Path)):
        images = _frames_of_file(Path(value).expanduser(), limit)
    loaded = [load_image_array("video", each) for each in as_list(images)[:limit]]
    if not loaded or len(loaded) > most or (frames is not None and len(loaded) < frames):
        expected = f"1 to {most} frames" if frames is None else f"at least {frames} (frames)"
        got = f"more than {most}" if len(loaded) > most else str(len(loaded))
        hint = f" Pass frames={most} for the first ones." if len(loaded) > most else ""
        message = f"video must have {expected}, got {got}.{hint}"
        raise InputError(message, argument="video", got=got, expected=expected)
    return loaded


def _frames_of_file(path: Path, count: int) -> list[Image.Image]:
    """Return the first `count` frames of a file. Raises `InputError`."""
    movie = path.suffix.lower() in MOVIES
    if movie and importlib.util.find_spec("av") is None:
        message = (
            f"cannot read {path}: {path.suffix} needs PyAV (pip install 'calotype[video]'). Or pass .webp or .gif."
        )
        raise InputError(message, argument="video")
    try:
        if not movie:
            with Image.open(path) as opened:
                return [
                    each.convert("RGB") for each, _ in zip(ImageSequence.Iterator(opened), range(count), strict=False)
                ]
        import av

        with av.open(str(path)) as container:
            frames: Any = islice(container.decode(video=0), count)
            return [each.to_image() for each in frames]
    except Exception as failed:  # PyAV and Pillow raise errors of several types
        message = f"cannot read the video {path}: {first_line(failed)}."
        raise InputError(message, argument="video", got=str(path)) from None


def check_video_output(path: Path) -> None:
    """Raise `InputError` before the work if a clip cannot be written."""
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"cannot write {path}: clips are written as {', '.join(SUFFIXES)}.", argument="output")
    if path.suffix.lower() in MOVIES and importlib.util.find_spec("av") is None:
        raise InputError(
            f"cannot write {path}: {path.suffix} needs PyAV (pip install 'calotype[video]'). Or write .webp or .gif.",
            argument="output",
        )
    if fault := folder_fault(path):
        raise InputError(fault, argument="output")


def check_output_of(video: bool, path: Path | None, quality: int | None, *, grid: bool) -> None:
    """Raise `InputError` before the work if a model of images, or of videos, cannot write what a command asks for."""
    if not video:
        if path is not None and is_clip_only(path):
            message = f"cannot write {path}: this model makes images, which are written as {', '.join(IMAGES)}."
            raise InputError(message, argument="output")
        return
    check_video_output(Path("out.webp") if path is None else path)
    if grid:
        raise InputError("--grid is for images, and this model makes clips. Omit it.", argument="grid")
    if quality is not None and path is not None and path.suffix.lower() == ".gif":
        raise InputError(f"--image-quality has no effect on {path}. Omit it.", argument="image_quality", got=quality)


def _write_animation(video: Video, path: Path, fps: float, quality: int) -> None:
    options: dict[str, Any] = {"save_all": True, "append_images": list(video.frames[1:]), "loop": 0}
    options |= {"duration": round(1000 / fps), **({} if path.suffix.lower() == ".gif" else {"quality": quality})}
    video.frames[0].save(path, **options)


def _write_movie(video: Video, path: Path, fps: float, quality: int) -> None:
    import av

    width, height = video.size
    quantizer = round(_WORST * (1 - quality / 100))
    with av.open(str(path), "w") as container:
        container.metadata["comment"] = json.dumps(
            {k: v for k, v in video.frames[0].info.items() if isinstance(v, str)}
        )
        stream: Any = container.add_stream(_ENCODER, rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        # A constant quality, at a speed at which the file is about as small as at the slowest.
        stream.options = {"crf": str(quantizer), "b": "0", "cpu-used": "4", "row-mt": "1", "deadline": "good"}
        for frame in video.frames:
            converted = av.VideoFrame.from_image(frame)  # type: ignore[no-untyped-call]
            container.mux(stream.encode(converted.reformat(format="yuv420p", dst_colorspace=_BT709)))
        container.mux(stream.encode())
