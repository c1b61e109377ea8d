"""The race: contenders take turns on the same pictures, round by round, and ratios are taken within a round.

A machine's speed drifts; within a round it drifts little. Who goes first changes from round to round. Where memory does
not hold all contenders at once they race in groups, each with the base.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from calotype.benchmarks.interval import of_median
from calotype.benchmarks.lane import Lane, Sample, Shot, make_room
from calotype.benchmarks.record import Ratio, Verdict
from calotype.memory import available_bytes

LEAST_ROUNDS = 6  # an interval of 95 % takes no fewer
_SETTLE_S = 0.05  # thread pools spin for some milliseconds after their work; the next contender shall not feel it
_RESERVE_BYTES = 1 << 30  # left free, for this process and the system

Timed = Callable[[Lane, Shot], Sample | None]  # paints, and says whether something disturbed it


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long a race goes on: six rounds at least, then until either of these is reached."""

    rounds: int
    budget_s: float


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A lane's seconds beside the base's of the same round."""

    lane: Lane
    seconds: float
    base_seconds: float


def qualify(lanes: Sequence[Lane], shot: Shot, show: Callable[[str], None]) -> None:
    """Open every lane once: what it takes to load, to paint a first picture, and in memory; who cannot is out."""
    for lane in lanes:
        show(f"opening {lane.contender.name}")
        make_room(lanes, [lane], lane.need_bytes + _RESERVE_BYTES, available_bytes)
        lane.open(shot)
        if lane.out:
            show(f"{lane.contender.name}: {lane.out[1]}")


def race(
    lanes: Sequence[Lane], base: Lane, shots: Sequence[Shot], limits: Limits, timed: Timed, show: Callable[[str], None]
) -> list[Turn]:
    """Run all rounds of all groups; the samples are in the lanes, the turns beside the base's are given back."""
    rivals = [lane for lane in lanes if lane is not base and not lane.out]
    turns: list[Turn] = []
    for group in groups(base, rivals):
        for lane in group:
            make_room(lanes, group, lane.need_bytes + _RESERVE_BYTES if not lane.alive else 0, available_bytes)
            lane.open(shots[0])
        show(f"racing {', '.join(lane.contender.name for lane in group if not lane.out)}")
        turns += _rounds(group, base, shots, limits, timed)
    return turns


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


def _rounds(group: Sequence[Lane], base: Lane, shots: Sequence[Shot], limits: Limits, timed: Timed) -> list[Turn]:
    turns: list[Turn] = []
    began = time.monotonic()
    for number in range(max(limits.rounds, LEAST_ROUNDS)):
        if number >= LEAST_ROUNDS and time.monotonic() - began > limits.budget_s:
            break
        taken: dict[int, Sample] = {}
        for lane in _order(group, number):
            time.sleep(_SETTLE_S)
            sample = timed(lane, shots[number % len(shots)])
            if sample is not None and not lane.out:
                taken[id(lane)] = sample
                lane.samples.append(sample)
        own = taken.get(id(base))
        if own is not None:
            turns += [
                Turn(lane=lane, seconds=taken[id(lane)].seconds, base_seconds=own.seconds)
                for lane in group
                if lane is not base and id(lane) in taken
            ]
    return turns


def _order(group: Sequence[Lane], number: int) -> list[Lane]:
    """Another one first in every round, and the order reversed in every other: nobody always follows the same one."""
    start = number % len(group)
    turned = [*group[start:], *group[:start]]
    return turned[::-1] if number % 2 else turned


def ratio_of(lane: Lane, base: Lane, turns: Sequence[Turn]) -> Ratio | None:
    """How many times as fast as the base; None where the two never met."""
    if lane is base:
        own = Ratio(base=base.contender.name, median=1.0, low=1.0, high=1.0, coverage=1.0, rounds=0, verdict="base")
        return replace(own, rounds=len(base.samples))
    found = [t.base_seconds / t.seconds for t in turns if t.lane is lane]
    if not found:
        return None
    interval = of_median(found)
    verdict: Verdict = "unknown" if interval.low is None else "level"
    if interval.excludes(1.0):
        verdict = "ahead" if statistics.median(found) > 1 else "behind"
    return Ratio(
        base=base.contender.name,
        median=interval.median,
        low=interval.low,
        high=interval.high,
        coverage=interval.coverage,
        rounds=len(found),
        verdict=verdict,
    )
