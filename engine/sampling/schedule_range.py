"""Which part of a schedule one call walks, and what it sets out from: what image-to-image makes of a scheduler.

Plain data, part of a compiled sampler's key. What it means for a scheduler's timesteps is `calotype.sampling.compile`'s
to say.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Origin = Literal["noise", "image", "latents"]


@dataclass(frozen=True, kw_only=True)
class ScheduleRange:
    """The whole schedule from noise, where nothing is said.

    Attributes:
        origin: "noise"; "image": clean latents with the noise of the first step on them; "latents": latents as they
            are, on their way already.
        skipped: steps left out at the beginning.
        begin, end: fractions of the schedule, by the timesteps that the network was trained with; where it is taken up
            from another model, and where it is handed on.
        keeps: whether a mask will keep part of the clean latents.
    """

    origin: Origin = "noise"
    skipped: int = 0
    begin: float | None = None
    end: float | None = None
    preserves_unmasked: bool = False

    @property
    def takes_latents(self) -> bool:
        """Are there clean latents in it?"""
        return self.preserves_unmasked or self.origin != "noise"

    @property
    def handoff(self) -> dict[str, float]:
        """Where it is taken up ("start") and handed on ("end"), where it is."""
        said = {"start": self.begin, "end": self.end}
        return {name: at for name, at in said.items() if at is not None}

    def key(self) -> dict[str, Any]:
        """What makes it another one than the whole schedule, for a key."""
        return {name: value for name, value in asdict(self).items() if value != getattr(FULL_SCHEDULE, name)}


FULL_SCHEDULE = ScheduleRange()
