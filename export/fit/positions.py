"""Which calls of a full schedule remain: power laws, then moves of single calls, each judged by a fit.

Errors of states do not tell the error of the image, so a candidate is fitted, run, and decoded. Its few unknowns cannot
overfit the calibration prompts, which therefore judge it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from calotype.sampling.fewer_calls import spread_positions

POWERS = (1.4, 1.6, 1.2)
Positions = tuple[int, ...]


def search(steps: int, calls: int, score: Callable[[Positions], float], seconds: float) -> Positions:
    """Return the positions with the highest score.

    Args:
        steps: Network calls of the full schedule.
        calls: Network calls that remain.
        score: Fits a candidate and returns how close it is, in dB.
        seconds: The time for the search. The first candidate is always scored.
    """
    began = time.monotonic()
    scores: dict[Positions, float] = {}

    def best_of(candidates: Iterator[Positions], best: Positions | None) -> Positions:
        for each in candidates:
            if each not in scores and (best is None or time.monotonic() - began < seconds):
                scores[each] = score(each)
                best = each if best is None or scores[each] > scores[best] else best
        assert best is not None
        return best

    best = best_of((spread_positions(steps, calls, power) for power in POWERS), None)
    while time.monotonic() - began < seconds:
        better = best_of(_moves(best, steps), best)
        if better == best:
            break
        best = better
    return best


def _moves(positions: Positions, steps: int) -> Iterator[Positions]:
    """Yield the positions with one call moved by one place."""
    for i in reversed(range(1, len(positions))):
        for place in (positions[i] - 1, positions[i] + 1):
            if place < steps and place not in positions:
                yield tuple(sorted({*positions[:i], place, *positions[i + 1 :]}))
