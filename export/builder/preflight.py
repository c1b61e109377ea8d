"""Estimate the memory and disk that a build needs, and compare them with what is free before the work starts.

Two kinds of child process need the most memory: one that traces or records the largest component, and the evaluation,
which opens all components. The constants are a fit to a build of full-size Stable Diffusion 1.5 with random weights
at 512 px: tracing its 3.2 GiB U-Net took 5.4 GiB, recording 5.6, checking 9.1, and the evaluation 11.1.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from calotype.errors import BuildError
from calotype.files.paths import home
from calotype.plan.profile import Profile, Range
from calotype.system.memory import Load, available_bytes, in_words, peak_bytes

from .spec import BuildSpec

_BASE_BYTES = 700 << 20  # an interpreter with torch, diffusers and the exporter
_MODULE = 1.6  # times a component's float32 weights: the module, and the file that it is read from
_SESSIONS = 1.1  # times the weights of all components: the backend's copies
_ACTIVATIONS = 2.2  # times the largest arrays of a run: the backend's arena keeps several
_FRAMES = 4  # of a recorded clip
_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 4.0, "int8": 1.0, "fp8": 1.0, "auto": 4.0}


@dataclass(frozen=True, kw_only=True)
class Need:
    """The most memory and disk that a build needs, in bytes. `disk`: the store and the plan together."""

    memory: int
    disk: int


@dataclass(frozen=True, kw_only=True)
class Room:
    """Free memory and disk in bytes; None if the system does not report it."""

    memory: int | None
    disk: int | None

    def holds(self, need: Need) -> bool:
        """Return whether the need fits."""
        pairs = ((need.memory, self.memory), (need.disk, self.disk))
        return all(free is None or needed <= free for needed, free in pairs)


def check_room(
    spec: BuildSpec,
    profile: Profile,
    weights: Mapping[str, int],
    loads: tuple[Load, ...],
    *,
    room: Room | None = None,
) -> Need:
    """Return the estimated need of a build.

    Args:
        weights: the number of weights (not bytes) of each component.
        room: by default the free memory, and the free disk of the store or of the plan, whichever has less.

    Raises:
        BuildError: it is too large; with the figures, and with a smaller build that fits.
    """
    if room is None:
        room = Room(memory=available_bytes(), disk=min(_free(home()), _free(spec.output.absolute().parent)))
    need = _need(spec, profile, weights, loads)
    if room.holds(need):
        return need
    free = {"memory": room.memory, "disk": room.disk}
    have = ", ".join(f"{in_words(size)} of {what}" for what, size in free.items() if size is not None)
    smaller = next((flag for flag, s, p in _smaller(spec, profile) if room.holds(_need(s, p, weights, loads))), None)
    advice = f"With {smaller} it would fit" if smaller else "No smaller build of this model fits here"
    raise BuildError(
        f"this build needs about {in_words(need.memory)} of memory and {in_words(need.disk)} of disk, but only {have} "
        f"are free. {advice}.",
        hint=smaller,
    )


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _need(spec: BuildSpec, profile: Profile, weights: Mapping[str, int], loads: tuple[Load, ...]) -> Need:
    height, width = image_size(spec, profile)
    count, largest = sum(weights.values()), 4 * max(weights.values())
    frames = recorded_frames(profile) or 1
    working = peak_bytes(loads, batch=frames, height=height, width=width, guided=True) * profile.rows // 2
    held = max(_MODULE * largest, _SESSIONS * 4 * count) + _ACTIVATIONS * working
    trials = 4 * count if spec.precision in ("int8", "fp8", "auto", "fp16") else 0
    kept = count * (_BYTES[spec.precision] + (4 if spec.fallback else 0))
    return Need(memory=int(_BASE_BYTES + held), disk=int(4 * count + trials + kept + (200 << 20)))


def image_size(spec: BuildSpec, profile: Profile) -> tuple[int, int]:
    """Return height and width of the recorded images: small ones, or with `prove` "full" the profile's usual size.

    Clips are always small: a build runs several.
    """
    if spec.prove == "full" and profile.frames is None:
        return profile.height.opt, profile.width.opt
    return small_size(profile)


def small_size(profile: Profile, pixels: int = 256) -> tuple[int, int]:
    """Return height and width of images that check numbers, not quality, of at least `pixels` where allowed."""
    small = -(-pixels // profile.multiple) * profile.multiple
    height, width = (max(r.min, min(r.opt, small)) for r in (profile.height, profile.width))
    return height, width


def recorded_frames(profile: Profile) -> int | None:
    """Return the frames of the recorded clips, of a video model."""
    frames = profile.frames
    return None if frames is None else max(frames.min, min(frames.opt, _FRAMES))


def _smaller(spec: BuildSpec, profile: Profile) -> Iterator[tuple[str, BuildSpec, Profile]]:
    """Yield less demanding builds with their flags, the least intrusive change first."""
    if spec.fallback:
        yield "no --fallback", replace(spec, fallback=False), profile
    if spec.prove == "full":
        yield "--prove small", replace(spec, prove="small"), profile
    if image_size(spec, profile) == (profile.height.opt, profile.width.opt):
        height, width = (_narrow(side, profile.multiple) for side in (profile.height, profile.width))
        yield f"--height {height} --width {width}", spec, replace(profile, height=height, width=width)
    if spec.precision == "auto":
        yield "--precision int8", replace(spec, precision="int8"), profile
    if spec.precision in ("auto", "bf16", "fp32"):
        yield "--precision fp16", replace(spec, precision="fp16"), profile


def _narrow(size: Range, multiple: int) -> Range:
    low = max(size.min, multiple)
    usual = max(low, size.opt // 2 // multiple * multiple)
    return Range(min=low, opt=usual, max=usual)
