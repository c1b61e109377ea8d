"""What steps cost, and the order of jobs that follows from it.

Jobs run in the order of their ranks: the moment of arrival plus the expected seconds of work beyond the first second.
So a short job overtakes a longer one that came a little earlier, and no job waits forever: a job that comes later than
that has a higher rank. Jobs of less than a second run in the order in which they came: to overtake would only make the
slowest answers slower. A job of a higher priority counts as if it had come earlier.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict, deque
from collections.abc import Hashable

PRIORITY_S = 60.0  # how much earlier a job of the next priority counts
_SHORT_S = 1.0  # work that moves no job back
_FIRST_GUESS_S = 0.05  # of one image's step, before any ran
_NEW_SHARE = 0.2  # of the newest step in the running mean
_SAMPLES = 7  # steps whose median tells what a batch costs
_AGAIN = 64  # steps after which the slower way is measured once more


class Costs:
    """Seconds of a step of one image, as they were lately. Only the engine's thread writes."""

    def __init__(self) -> None:
        self._of_kind: dict[Hashable, float] = {}
        self._last = _FIRST_GUESS_S
        self._samples: defaultdict[Hashable, deque[float]] = defaultdict(lambda: deque(maxlen=_SAMPLES))
        self._questions: Counter[Hashable] = Counter()

    def learn(self, kind: Hashable, images: int, seconds: float) -> None:
        """Take the seconds of a step of several images. `kind` is what the cost depends on: model and size."""
        each = seconds / images
        self._samples[kind, images > 1].append(each)
        known = self._of_kind.get(kind)
        self._last = self._of_kind[kind] = each if known is None else known + _NEW_SHARE * (each - known)

    def pays_together(self, kind: Hashable) -> bool:
        """Return whether images run faster together than one after another, as the last steps of both ways were.

        That depends on the machine: on some, one image keeps all cores busy, and on others each core waits for others.
        """
        together, alone = self._samples[kind, True], self._samples[kind, False]
        if len(together) < _SAMPLES or len(alone) < _SAMPLES:
            return len(together) < _SAMPLES
        self._questions[kind] += 1
        pays = statistics.median(together) < statistics.median(alone)
        return pays if self._questions[kind] % _AGAIN else not pays

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
    return arrival + max(0.0, work_s - _SHORT_S) - PRIORITY_S * priority
