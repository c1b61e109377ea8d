"""Is there room for the build? Memory and disk, estimated and held against what there is, before the work starts.

Two kinds of child process hold the most: one that traces or records the largest component, and the proof, which has
all of them open. Figures were fitted to a build of full-size Stable Diffusion 1.5 with random weights at 512 px: its
U-Net of 3.2 GiB was traced in 5.4 GiB, recorded in 5.6 and checked in 9.1, and the proof took 11.1.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from calotype.errors import BuildError
from calotype.files.paths import home
from calotype.plan.profile import Profile, Range
from calotype.system.memory import Load, available_bytes, in_words, peak_bytes

from .spec import BuildSpec

_BASE_BYTES = 700 << 20  # an interpreter with torch, diffusers and the exporter
_MODULE = 1.6  # times a component's float32 weights: the module, and the file that it was read from
_SESSIONS = 1.1  # times the weights of all components: the backend's copies
_ACTIVATIONS = 2.2  # times the largest arrays of a run: the backend's arena keeps several
_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 4.0, "int8": 1.0, "fp8": 1.0, "auto": 4.0}


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a build takes at most, in bytes."""

    memory: int
    disk: int  # in the store and the plan together

    def __str__(self) -> str:
        return f"{in_words(self.memory)} of memory and {in_words(self.disk)} of disk"


@dataclass(frozen=True, kw_only=True)
class Room:
    """What there is, in bytes; None where the system does not tell."""

    memory: int | None
    disk: int | None

    def holds(self, need: Need) -> bool:
        """Does the need fit?"""
        pairs = ((need.memory, self.memory), (need.disk, self.disk))
        return all(have is None or wanted <= have for wanted, have in pairs)


def room_for(output: Path) -> Room:
    """Free memory, and the free disk of the fuller of the two file systems: the store's and the plan's."""
    return Room(memory=available_bytes(), disk=min(_free(home()), _free(output.absolute().parent)))


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def need_of(spec: BuildSpec, weights: Mapping[str, int], loads: tuple[Load, ...], *, height: int, width: int) -> Need:
    """An estimate. `weights` are numbers (not bytes) by component; pictures of the proof are `height` x `width`."""
    largest = 4 * max(weights.values())
    working = peak_bytes(loads, batch=1, height=height, width=width, guided=True)
    whole = 4 * sum(weights.values())
    kept = sum(weights.values()) * (_BYTES[spec.precision] + (4 if spec.fallback else 0))
    tried = whole * 1.0 if spec.precision in ("int8", "fp8", "auto", "fp16") else 0.0
    held = max(_MODULE * largest, _SESSIONS * whole) + _ACTIVATIONS * working
    return Need(memory=int(_BASE_BYTES + held), disk=int(whole + tried + kept + (200 << 20)))


def check_room(
    spec: BuildSpec,
    profile: Profile,
    weights: Mapping[str, int],
    loads: tuple[Load, ...],
    *,
    room: Room | None = None,
) -> Need:
    """The need; `BuildError` with the figures, and with the smaller build that would fit, where there is no room."""
    room = room_for(spec.output) if room is None else room
    need = _need(spec, profile, weights, loads)
    if room.holds(need):
        return need
    have = ", ".join(
        f"{in_words(b)} of {what}" for what, b in (("memory", room.memory), ("disk", room.disk)) if b is not None
    )
    smaller = next((flag for flag, s, p in _smaller(spec, profile) if room.holds(_need(s, p, weights, loads))), None)
    told = f"with {smaller} it would fit" if smaller else "no smaller build of this model fits here"
    raise BuildError(f"this build needs about {need}, and {have} are free; {told}.")


def _need(spec: BuildSpec, profile: Profile, weights: Mapping[str, int], loads: tuple[Load, ...]) -> Need:
    height, width = picture_size(spec, profile)
    return need_of(spec, weights, loads, height=height, width=width)


def picture_size(spec: BuildSpec, profile: Profile) -> tuple[int, int]:
    """Of the recorded pictures: the usual size where a gate judges them; else a small one that the profile has."""
    if spec.gated:
        return profile.height.opt, profile.width.opt
    small = -(-256 // profile.multiple) * profile.multiple
    height, width = (max(r.min, min(r.opt, small)) for r in (profile.height, profile.width))
    return height, width


def _smaller(spec: BuildSpec, profile: Profile) -> list[tuple[str, BuildSpec, Profile]]:
    """Less demanding builds in the order of how little they take away, with the flags that say them."""
    found = []
    if spec.fallback:
        found.append(("no --fallback", replace(spec, fallback=False), profile))
    if spec.gated:
        small = {name: _narrow(getattr(profile, name), profile.multiple) for name in ("height", "width")}
        flags = " ".join(f"--{name} {r}" for name, r in small.items())
        found.append((flags, spec, replace(profile, height=small["height"], width=small["width"])))
    if spec.precision == "auto":
        found.append(("--precision int8", replace(spec, precision="int8"), profile))
    if spec.precision in ("auto", "bf16", "fp32"):
        found.append(("--precision fp16", replace(spec, precision="fp16"), profile))
    return found


def _narrow(size: Range, multiple: int) -> Range:
    low = max(size.min, multiple)
    usual = max(low, size.opt // 2 // multiple * multiple)
    return Range(min=low, opt=usual, max=usual)
