"""What to fit: one frozen dataclass, which the command line and `Pipeline.fit` fill."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from calotype.errors import InputError
from calotype.errors.validation import check_float, check_int

if TYPE_CHECKING:  # the command line reads this file for its options
    from calotype.sampling.schedulers import SchedulerLike

GUIDANCE = (2.0, 9.0)
_TEXT = re.compile(r"([^:]+):(\d{1,4}):(\d{1,4})")


@dataclass(frozen=True, kw_only=True)
class FitSpec:
    """Configuration of a fit.

    Attributes:
        scheduler: What `spec_from` takes; None is the model's.
        steps: The steps of the schedule to imitate.
        calls: Network calls of each fitted sampler, fewer than the schedule makes; one number or several.
        guidance: The range of guidance scales that the rows hold for.
        prompts: A file with one prompt per line, a list of prompts, or None for built-in ones. Every other one is held
            out.
        calibration: Prompts that the rows are fitted to.
        held_out: Prompts that measure the result.
        height, width: Pixels; None is the model's size.
        images: Also fit image-to-image, at every strength. None: if images are smaller than 256 x 256.
        unchecked: Keep a fit without measuring it on held-out prompts. For timings of random weights.
    """

    scheduler: SchedulerLike = None
    steps: int = 20
    calls: int | Sequence[int] = 10
    guidance: tuple[float, float] = GUIDANCE
    prompts: Path | Sequence[str] | None = None
    calibration: int = 48
    held_out: int = 16
    height: int | None = None
    width: int | None = None
    images: bool | None = None
    unchecked: bool = False

    def __post_init__(self) -> None:
        check_int("steps", self.steps, 2, 1000)
        if not self.counts:
            raise InputError("calls needs at least one number.", argument="calls", got=self.calls)
        for calls in self.counts:
            check_int("calls", calls, 1, 2 * self.steps)
        if len(self.guidance) != 2:
            message = f"guidance must be a range from low to high; got {self.guidance!r}."
            raise InputError(message, argument="guidance", got=self.guidance)
        low, high = (check_float("guidance", scale, 100) for scale in self.guidance)
        if low > high:
            message = f"guidance must be a range from low to high; got {low:g} to {high:g}."
            raise InputError(message, argument="guidance", got=self.guidance)
        check_int("calibration", self.calibration, 1, 4096)
        check_int("held_out", self.held_out, 2, 4096)

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers of network calls."""
        return tuple(self.calls) if isinstance(self.calls, Sequence) else (self.calls,)


def fit_spec_from(text: str) -> FitSpec:
    """Return the spec of SCHEDULER:STEPS:CALLS, such as euler:20:10. Raises `InputError`."""
    match = _TEXT.fullmatch(text)
    if match is None:
        expected = "SCHEDULER:STEPS:CALLS, such as euler:20:10"
        raise InputError(f"got {text!r}; expected {expected}.", argument="fit", got=text, expected=expected)
    return FitSpec(scheduler=match[1], steps=int(match[2]), calls=int(match[3]))
