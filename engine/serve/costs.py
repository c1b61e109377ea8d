"""What steps cost, and the order of jobs that follows from it.

Jobs run in the order of their ranks: the moment of arrival plus the expected seconds of work. So a short job overtakes
a longer one that came a little earlier, and no job waits forever: a job that comes later than that has a higher rank.
Each job of a higher priority counts as if it had come earlier.
"""

from __future__ import annotations

from collections.abc import Hashable

PRIORITY_S = 60.0  # how much earlier a job of the next priority counts
_STRETCH = 1.0  # seconds by which a second of work moves a job back
_FIRST_GUESS_S = 0.05  # of one image's step, before any ran
_NEW_SHARE = 0.2  # of the newest step in the running mean


class Costs:
    """Seconds of a step of one image, as they were lately. Only the engine's thread writes."""

    def __init__(self) -> None:
        self._of_kind: dict[Hashable, float] = {}
        self._last = _FIRST_GUESS_S

    def learn(self, kind: Hashable, images: int, seconds: float) -> None:
        """Take the seconds of a step of several images. `kind` is what the cost depends on: model and size."""
        each = seconds / images
        known = self._of_kind.get(kind)
        self._last = self._of_kind[kind] = each if known is None else known + _NEW_SHARE * (each - known)

    def step_s(self, kind: Hashable) -> float:
        """Return the expected seconds of a step of one image."""
        return self._of_kind.get(kind, self._last)


def rank_of(arrival: float, work_s: float, priority: int) -> float:
    """Return where a job stands; the lowest runs first.

    Args:
        arrival: When it was submitted, in seconds of the monotonic clock.
        work_s: The expected seconds of work.
        priority: Its priority.
    """
    return arrival + _STRETCH * work_s - PRIORITY_S * priority
