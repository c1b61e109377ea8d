"""The part of a schedule that one call runs, and its starting point, as image-to-image and inpainting need it.

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
    """

    origin: Origin = "noise"
    skipped: int = 0
    begin: float | None = None
    end: float | None = None
    preserves_unmasked: bool = False
    strength: float | None = None

    @property
    def takes_latents(self) -> bool:
        """Return whether a run needs latents of an image."""
        return self.preserves_unmasked or self.origin != "noise"

    def key(self) -> dict[str, Any]:
        """Return the attributes that differ from the full schedule, for a key."""
        return {name: value for name, value in asdict(self).items() if value != getattr(FULL_SCHEDULE, name)}


FULL_SCHEDULE = ScheduleRange()
