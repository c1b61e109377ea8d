"""What an upscaler is before it is opened. `calotype.export` makes it from a file."""

from __future__ import annotations

from dataclasses import dataclass

from ..plan.plan import PlannedComponent
from ..plan.profile import Profile
from ..system.memory import Load


@dataclass(frozen=True, kw_only=True)
class PlannedUpscaler:
    """An upscaler that can be opened.

    Attributes:
        component: the network, with the input "sample" and the output "enlarged".
        scale: how many times larger it makes each side.
        profile: the sizes of its input in pixels.
        load: its largest array.
        digest: SHA-256 of its file.
    """

    component: PlannedComponent
    scale: int
    profile: Profile
    load: Load
    digest: str
