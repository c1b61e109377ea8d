"""Which calls of a full schedule remain: power laws, then moves of single calls, each judged by a fit.

Errors of states on the recorded run do not tell the error of the image: a run corrects part of its own errors. So a
candidate is fitted and its images are decoded. Its few unknowns cannot overfit the calibration prompts that judge it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from calotype.sampling.fewer_calls import spread_positions

POWERS = (1.4, 1.6, 1.2)
Positions = tuple[int, ...]


def search(steps: int, calls: int, score: Callable[[Positions], float], trials: int) -> Positions:
    """Return the positions with the highest score.

    Args:
        steps: Network calls of the full schedule.
        calls: Network calls that remain.
        score: Fits a candidate and returns how close it is, in dB.
        trials: The number of candidates, at least 1.
    """
    powers = dict.fromkeys(spread_positions(steps, calls, power) for power in POWERS)
    scores = {each: score(each) for each in itertools.islice(powers, trials)}
    best = max(scores, key=scores.__getitem__)
    moves = _moves(best, steps)
    while len(scores) < trials and (each := next(moves, None)) is not None:
        if each not in scores:
            scores[each] = score(each)
            if scores[each] > scores[best]:
                best, moves = each, _moves(each, steps)
    return best


def _moves(positions: Positions, steps: int) -> Iterator[Positions]:
    """Yield the positions with one call moved by one place, late calls first: they cost the most."""
    for i in reversed(range(1, len(positions))):
        for place in (positions[i] - 1, positions[i] + 1):
            if place < steps and place not in positions:
                yield tuple(sorted({*positions[:i], place, *positions[i + 1 :]}))
