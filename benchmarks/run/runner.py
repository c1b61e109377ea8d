"""Rounds in which contenders take turns on the same images. Ratios are computed within a round.

The speed of a machine drifts, but little within one round. The order changes from round to round. If memory does not
hold all contenders at once, they run in groups, each with the base.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from calotype.system.memory import available_bytes

from ..measure.interval import of_median
from ..measure.record import Ratio, Verdict
from ..suite.cases import Case
from .contender_process import BenchmarkCall, ContenderProcess, Sample, make_room
from .workload import ShowLine

MIN_ROUNDS = 6  # a 95 % interval needs six
_SETTLE_S = 0.25  # thread pools spin after their work (OpenBLAS 0.1 s, OpenMP up to 0.2 s): wait for them
_RESERVE_BYTES = 1 << 30  # stays free for this process and the system

Round = Mapping[str, float]  # contender -> seconds; without contenders that failed
# Generates an image, and notes whether other work disturbed it.
Timed = Callable[[ContenderProcess, BenchmarkCall], Sample | None]


def warm_up(processes: Sequence[ContenderProcess], call: BenchmarkCall, show: ShowLine) -> None:
    """Open every contender once: measure its load time, first image and memory. Exclude those that fail."""
    for process in processes:
        show(f"opening {process.contender.name}")
        make_room(processes, [process], process.need_bytes + _RESERVE_BYTES, available_bytes)
        process.open(call)
        if process.exclusion:
            show(f"{process.contender.name}: {process.exclusion[1]}")


def run_rounds(
    case: Case,
    processes: Sequence[ContenderProcess],
    base: ContenderProcess,
    calls: Sequence[BenchmarkCall],
    *,
    timed: Timed,
    show: ShowLine,
) -> list[Round]:
    """Run all rounds of all groups. The samples are in the contenders' processes."""
    challengers = [process for process in processes if process is not base and not process.exclusion]
    rounds: list[Round] = []
    for group in groups(base, challengers):
        for process in group:
            need = 0 if process.alive else process.need_bytes + _RESERVE_BYTES
            make_room(processes, group, need, available_bytes)
            process.open(calls[0])
        show(f"timing {', '.join(process.contender.name for process in group if not process.exclusion)}")
        rounds += _rounds(case, group, calls, timed)
    return rounds


def groups(base: ContenderProcess, challengers: Sequence[ContenderProcess]) -> Iterator[list[ContenderProcess]]:
    """Yield the base with as many other contenders as fit into memory, until each was in one group."""
    held = sum(process.need_bytes for process in (base, *challengers) if process.alive)
    free = available_bytes()
    room = float("inf") if free is None else free + held - _RESERVE_BYTES
    group = [base]
    for challenger in challengers:
        if len(group) > 1 and sum(p.need_bytes for p in (*group, challenger)) > room:
            yield group
            group = [base]
        group.append(challenger)
    yield group


def _rounds(
    case: Case, group: Sequence[ContenderProcess], calls: Sequence[BenchmarkCall], timed: Timed
) -> Iterator[Round]:
    """Yield at least six rounds, and then more until the case's number of rounds or seconds is reached."""
    ends = time.monotonic() + case.budget_s
    for number in range(max(case.rounds, MIN_ROUNDS)):
        if number >= MIN_ROUNDS and time.monotonic() > ends:
            break
        taken: dict[str, float] = {}
        for process in order_of(group, number):
            time.sleep(_SETTLE_S)
            sample = timed(process, calls[number % len(calls)])
            if sample is not None and not process.exclusion:
                taken[process.contender.name] = sample.seconds
                process.samples.append(sample)
        yield taken


def order_of(group: Sequence[ContenderProcess], number: int) -> list[ContenderProcess]:
    """Return a shuffled order, and its reverse for the next round: nobody always follows the same contender."""
    shuffled = list(group)
    random.Random(number // 2).shuffle(shuffled)
    return shuffled[::-1] if number % 2 else shuffled


def ratio_of(process: ContenderProcess, base: ContenderProcess, rounds: Sequence[Round]) -> Ratio | None:
    """Return the speed relative to the base; None if they share no round, or if the base's images are wrong."""
    name, other = process.contender.name, base.contender.name
    ratios = [taken[other] / taken[name] for taken in rounds if name in taken and other in taken]
    if not ratios or base.exclusion:
        return None
    if process is base:
        return Ratio(base=name, median=1.0, low=1.0, high=1.0, coverage=1.0, rounds=len(ratios), verdict="base")
    interval = of_median(ratios)
    verdict: Verdict = "unknown"
    if interval.low is not None and interval.high is not None:
        verdict = "ahead" if interval.low > 1 else "behind" if interval.high < 1 else "level"
    return Ratio(base=other, rounds=len(ratios), verdict=verdict, **vars(interval))


def base_of(processes: Sequence[ContenderProcess], precision: str | None = None) -> ContenderProcess | None:
    """Return the base of the ratios: our fastest contender (of one precision), or the fastest of all without ours."""
    able = [process for process in processes if not process.exclusion and process.warm_s is not None]
    ours = [
        process
        for process in able
        if process.contender.is_ours
        and not process.contender.variant  # a variant does other work, or less
        and process.contender.precision == (precision or process.contender.precision)
    ]
    return min(ours or ([] if precision else able), key=_typical_s, default=None)


def _typical_s(process: ContenderProcess) -> float:
    """Return the median of the rounds; before the first round, the fastest image after the warm-up."""
    seconds = [sample.seconds for sample in process.samples]
    return statistics.median(seconds) if seconds else process.warm_s or 0.0
