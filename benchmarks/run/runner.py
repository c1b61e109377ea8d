"""The race: contenders take turns on the same pictures, round by round, and ratios are taken within a round.

A machine's speed drifts; within a round it drifts little. Who goes first changes from round to round. Where memory does
not hold all contenders at once they race in groups, each with the base.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from calotype.system.memory import available_bytes

from ..measure.interval import of_median
from ..measure.record import Ratio, Verdict
from .contender_process import Lane, Sample, Shot, make_room

LEAST_ROUNDS = 6  # an interval of 95 % takes no fewer
_SETTLE_S = 0.25  # thread pools spin after their work (OpenBLAS 0.1 s, OpenMP up to 0.2 s): the next shall not feel it
_RESERVE_BYTES = 1 << 30  # left free, for this process and the system

Tell = Callable[[str], None]
Timed = Callable[[Lane, Shot], Sample | None]  # paints, and says whether something disturbed it


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long a race (of one group) goes on: six rounds at least, then until either of these is reached."""

    rounds: int
    budget_s: float


Round = Mapping[str, float]  # contender -> seconds; who painted wrongly or broke is not in it


def qualify(lanes: Sequence[Lane], shot: Shot, show: Tell) -> None:
    """Open every lane once: what it takes to load, to paint a first picture, and in memory; who cannot is out."""
    for lane in lanes:
        show(f"opening {lane.contender.name}")
        make_room(lanes, [lane], lane.need_bytes + _RESERVE_BYTES, available_bytes)
        lane.open(shot)
        if lane.out:
            show(f"{lane.contender.name}: {lane.out[1]}")


def race(
    lanes: Sequence[Lane], base: Lane, shots: Sequence[Shot], *, limits: Limits, timed: Timed, show: Tell
) -> list[Round]:
    """Run all rounds of all groups; the samples are in the lanes."""
    rivals = [lane for lane in lanes if lane is not base and not lane.out]
    rounds: list[Round] = []
    for group in groups(base, rivals):
        for lane in group:
            make_room(lanes, group, lane.need_bytes + _RESERVE_BYTES if not lane.alive else 0, available_bytes)
            lane.open(shots[0])
        show(f"racing {', '.join(lane.contender.name for lane in group if not lane.out)}")
        rounds += _rounds(group, shots, limits, timed)
    return rounds


def groups(base: Lane, rivals: Sequence[Lane]) -> Iterator[list[Lane]]:
    """The base with as many rivals as memory holds beside it, until every rival had its race."""
    held = sum(lane.need_bytes for lane in (base, *rivals) if lane.alive)
    free = available_bytes()
    room = float("inf") if free is None else free + held - _RESERVE_BYTES
    group, taken = [base], base.need_bytes
    for rival in rivals:
        if len(group) > 1 and taken + rival.need_bytes > room:
            yield group
            group, taken = [base], base.need_bytes
        group.append(rival)
        taken += rival.need_bytes
    yield group


def _rounds(group: Sequence[Lane], shots: Sequence[Shot], limits: Limits, timed: Timed) -> Iterator[Round]:
    began = time.monotonic()
    for number in range(max(limits.rounds, LEAST_ROUNDS)):
        if number >= LEAST_ROUNDS and time.monotonic() - began > limits.budget_s:
            break
        taken: dict[str, float] = {}
        for lane in _order(group, number):
            time.sleep(_SETTLE_S)
            sample = timed(lane, shots[number % len(shots)])
            if sample is not None and not lane.out:
                taken[lane.contender.name] = sample.seconds
                lane.samples.append(sample)
        yield taken


def _order(group: Sequence[Lane], number: int) -> list[Lane]:
    """A shuffled order, and the same backwards in the next round: who goes after whom is left to chance."""
    shuffled = list(group)
    random.Random(number // 2).shuffle(shuffled)
    return shuffled[::-1] if number % 2 else shuffled


def ratio_of(lane: Lane, base: Lane, rounds: Sequence[Round]) -> Ratio | None:
    """How many times as fast as the base; None where the two never met, or the base's pictures are wrong."""
    name, other = lane.contender.name, base.contender.name
    found = [taken[other] / taken[name] for taken in rounds if name in taken and other in taken]
    if not found or base.out:
        return None
    if lane is base:
        return Ratio(base=name, median=1.0, low=1.0, high=1.0, coverage=1.0, rounds=len(found), verdict="base")
    interval = of_median(found)
    verdict: Verdict = "unknown" if interval.low is None else "level"
    if interval.excludes(1.0):
        verdict = "ahead" if interval.median > 1 else "behind"
    return Ratio(
        base=other,
        median=interval.median,
        low=interval.low,
        high=interval.high,
        coverage=interval.coverage,
        rounds=len(found),
        verdict=verdict,
    )


def base_of(lanes: Sequence[Lane], precision: str | None = None) -> Lane | None:
    """What others are held against: our fastest (of a precision), or whoever is fastest where none of ours runs."""
    able = [lane for lane in lanes if not lane.out and lane.warm_s is not None]
    ours = [
        lane
        for lane in able
        if lane.contender.is_ours
        and not lane.contender.variant  # which does another work, or leaves it out
        and lane.contender.precision == (precision or lane.contender.precision)
    ]
    return min(ours or ([] if precision else able), key=_typical_s, default=None)


def _typical_s(lane: Lane) -> float:
    """The median of the rounds; before there are any, the best warm picture."""
    seconds = [sample.seconds for sample in lane.samples]
    return statistics.median(seconds) if seconds else lane.warm_s or 0.0
