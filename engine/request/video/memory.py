"""Whether a clip fits into the free memory: the U-Net sees all frames at once, the decoder sees chunks of them.

The estimate is that of `calotype.system.memory`: the largest array of a run, three times.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import InputError
from ...plan.plan import Plan
from ...system.memory import Load, in_words, peak_bytes
from .clip import ClipSettings

_SHARES = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25)  # of each side, offered in this order


def check_clip_memory(
    plan: Plan, clip: ClipSettings, *, clips: int, rows: int, height: int, width: int, free: int | None, scores: bool
) -> None:
    """Raise `InputError` if the U-Net needs more memory than is free, with the frames or the size that fit.

    Args:
        plan: The plan of the model.
        clip: What the call asks for.
        clips: Clips that run at once.
        rows: Rows of the U-Net for each of them: 2 under guidance.
        height: In pixels.
        width: In pixels.
        free: Free memory in bytes; None if it is unknown.
        scores: Whether the backend keeps attention scores.
    """
    loads = [load for load in plan.loads if load.guided and (scores or not load.squared)]

    def need(frames: int, tall: int, wide: int, several: int = clips) -> int:
        return peak_bytes(loads, batch=frames * several * rows, height=tall, width=wide, guided=False)

    if free is None or (needed := need(clip.frames, height, width)) <= free:
        _check_chunk(plan, clip, height, width, free)
        return
    offers = ["num_images=1"] if clips > 1 and need(clip.frames, height, width, 1) <= free else []
    fewer = next((n for n in range(clip.frames - 1, 0, -1) if need(n, height, width) <= free), 0)
    offers += [f"frames={fewer}"] if fewer else []
    sizes = [(tall, wide) for tall, wide in _smaller(plan, height, width) if need(clip.frames, tall, wide) <= free]
    offers += [f"width={wide}, height={tall}" for tall, wide in sizes[:1]]
    size = f"{clip.frames} frames of {width} x {height} pixels"
    raise InputError(
        f"Not enough memory: {size} need about {in_words(needed)}, and {in_words(free)} is free. By an estimate "
        f"{' or '.join(offers) or 'no smaller clip'} would fit.",
        argument="frames",
        got=needed,
        expected=f"at most {in_words(free)} of memory",
    )


def _check_chunk(plan: Plan, clip: ClipSettings, height: int, width: int, free: int | None) -> None:
    """Raise `InputError` if the frames that the caller wants to decode at once do not fit."""
    chunk = clip.decode_chunk_size
    if chunk is None or free is None:
        return
    chunk, loads = min(chunk, clip.frames), decoder_loads(plan)
    room_for = largest_chunk(loads, clip.frames, height, width, free)
    if chunk <= max(room_for, 1):
        return
    needed = peak_bytes(loads, batch=chunk, height=height, width=width, guided=False)
    raise InputError(
        f"Not enough memory: decode_chunk_size={chunk} needs about {in_words(needed)} to decode {width} x {height} "
        f"pixels, and {in_words(free)} is free. Omit it, or use decode_chunk_size={max(room_for, 1)}.",
        argument="decode_chunk_size",
        got=chunk,
    )


def decoder_loads(plan: Plan) -> list[Load]:
    """Return the largest arrays of the decoder, for each frame."""
    return [load for load in plan.loads if not load.guided]


def largest_chunk(loads: list[Load], frames: int, height: int, width: int, free: int) -> int:
    """Return the most frames of a clip that the decoder takes at once within the free memory; 0 if not even one."""
    each = peak_bytes(loads, batch=1, height=height, width=width, guided=False)
    return min(frames, free // max(each, 1))


def _smaller(plan: Plan, height: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield smaller sizes of about the same shape, the largest first."""
    multiple = plan.profile.multiple
    for share in _SHARES:
        tall, wide = (round(side * share) // multiple * multiple for side in (height, width))
        if plan.profile.height.min <= tall and plan.profile.width.min <= wide:
            yield tall, wide
