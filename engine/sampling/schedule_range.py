"""The schedule that one call runs: its timesteps, if the caller chose them, the part of it, and the starting point.

Plain data, and part of a compiled sampler's key. `calotype.sampling.compile` maps it to a scheduler's timesteps.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Origin = Literal["noise", "image", "latents"]


@dataclass(frozen=True, kw_only=True)
class ScheduleRange:
    """A part of a schedule. The default is the full schedule from noise.

    Attributes:
        origin: The starting point. "noise"; "image": clean latents plus the noise of the first step; "latents": latents
            of an earlier model, which are already partly denoised.
        skipped: The number of steps left out at the beginning.
        begin, end: Fractions of the schedule, in training timesteps: where this model takes over from an earlier one,
            and where it hands over to a later one.
        preserves_unmasked: Whether a mask preserves part of the clean latents.
        strength: Part of the schedule in which a scheduler of consistency models places all its steps, with none
            skipped (Luo et al. 2023, arXiv 2310.04378). Other schedulers skip steps.
        timesteps, sigmas: The caller's own schedule, in place of the scheduler's spacing of steps; one of them at most.
        eta: The part of DDPM's noise that DDIM adds again, for the schedulers that take it (arXiv 2010.02502, eq. 16).
    """

    origin: Origin = "noise"
    skipped: int = 0
    begin: float | None = None
    end: float | None = None
    preserves_unmasked: bool = False
    strength: float | None = None
    timesteps: tuple[float, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    eta: float = 0.0

    @property
    def takes_latents(self) -> bool:
        """Return whether a run needs latents of an image."""
        return self.preserves_unmasked or self.origin != "noise"

    @property
    def is_custom(self) -> bool:
        """Return whether the caller chose the schedule or its noise. No plan and no fit has a sampler for it."""
        return self.timesteps is not None or self.sigmas is not None or self.eta != 0

    def key(self) -> dict[str, Any]:
        """Return the attributes that differ from the full schedule, for a key."""
        return {name: value for name, value in asdict(self).items() if value != getattr(FULL_SCHEDULE, name)}


FULL_SCHEDULE = ScheduleRange()
