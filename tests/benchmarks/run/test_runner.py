"""Tests of turns, groups and verdicts, on contenders without processes."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from calotype.benchmarks.run import runner
from calotype.benchmarks.run.contender_process import BenchmarkCall, Sample, make_room
from calotype.benchmarks.run.runner import base_of, groups, ratio_of, run_rounds
from calotype.benchmarks.suite.cases import Case
from calotype.benchmarks.suite.contenders import contender

CALLS = [BenchmarkCall(prompts=(w,), seeds=(i,), expected=np.zeros((1, 2, 2, 3), np.uint8)) for i, w in enumerate("ab")]


@dataclass(kw_only=True, eq=False)
class Dummy:
    contender: object
    seconds: float = 1.0
    need_bytes: int = 1
    alive: bool = False
    exclusion: object = None
    last_used: float = 0.0
    samples: list = field(default_factory=list)
    opened: int = 0
    warm_s: float | None = None

    def open(self, call):
        self.opened += not self.alive
        self.alive = True

    def close(self):
        self.alive = False


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(runner, "_SETTLE_S", 0)
    monkeypatch.setattr(runner, "_RESERVE_BYTES", 0)
    monkeypatch.setattr(runner, "available_bytes", lambda: 1000)


def processes(*seconds, **more):
    names = ("calotype:fake:fp32", "calotype:fake:bf16", "calotype:fake:fp16", "calotype:fake:int8")
    return [Dummy(contender=contender(n), seconds=s, **more) for n, s in zip(names, seconds, strict=False)]


def run(entered, rounds=6, budget_s=0.0, timed=None):
    log = []

    def timed_call(process, call):
        log.append((process.contender.name, call.prompts[0]))
        return Sample(seconds=process.seconds, parts={})

    case, timed = Case(rounds=rounds, budget_s=budget_s), timed or timed_call
    return run_rounds(case, entered, entered[0], CALLS, timed=timed, show=lambda line: None), log


def test_every_round_has_one_call_for_all_and_all_calls_are_used():
    _, log = run(processes(1, 2, 3))
    rounds = [log[i : i + 3] for i in range(0, len(log), 3)]
    assert len(rounds) == 6
    for number, turn in enumerate(rounds):
        assert len({name for name, _ in turn}) == 3
        assert {prompt for _, prompt in turn} == {CALLS[number % 2].prompts[0]}


@pytest.mark.parametrize("count", [2, 3, 8])
def test_no_contender_is_always_first_or_after_the_same_one(count):
    group = [Dummy(contender=None) for _ in range(count)]
    orders = [runner.order_of(group, number) for number in range(40)]
    for order in orders:
        assert sorted(map(id, order)) == sorted(map(id, group))
    assert {id(order[0]) for order in orders} == {id(order[-1]) for order in orders} == set(map(id, group))
    for process in group:
        before = {id(order[order.index(process) - 1]) for order in orders if order[0] is not process}
        assert len(before) >= min(count - 1, 4)


def test_a_pair_takes_turns_evenly():
    pair = [Dummy(contender=None) for _ in range(2)]
    firsts = [runner.order_of(pair, number)[0] for number in range(12)]
    assert firsts.count(pair[0]) == firsts.count(pair[1])


def test_six_rounds_run_for_any_budget_and_no_more_than_the_limit():
    assert len(run(processes(1, 2), rounds=30)[1]) == 12
    assert len(run(processes(1, 2), rounds=9, budget_s=60)[1]) == 18


def taken(base, challenger, seconds):
    return [{base.contender.name: one, challenger.contender.name: other} for one, other in seconds]


def test_ratios_are_computed_within_a_round():
    """A machine that slows down to a tenth in the middle changes no ratio."""
    base, challenger = processes(1, 1)
    ratio = ratio_of(challenger, base, taken(base, challenger, [(drift, 2 * drift) for drift in (1, 1, 1, 10, 10, 10)]))
    assert (ratio.median, ratio.low, ratio.high, ratio.verdict) == (0.5, 0.5, 0.5, "behind")


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([1.1, 1.2, 1.1, 1.3, 1.2, 1.1], "ahead"),
        ([1.1, 1.2, 1.1, 1.3, 1.2, 0.9], "level"),  # one slower round in six
        ([0.8] * 6, "behind"),
        ([2.0] * 5, "unknown"),  # five rounds give no interval
    ],
)
def test_ahead_needs_the_complete_interval(ratios, verdict):
    base, challenger = processes(1, 1)
    assert ratio_of(challenger, base, taken(base, challenger, [(r, 1.0) for r in ratios])).verdict == verdict


def test_without_a_common_round_there_is_no_ratio():
    base, challenger = processes(1, 1)
    assert ratio_of(challenger, base, []) is None


def test_a_contender_that_fails_does_not_stop_the_others():
    entered = processes(1, 2, 3)
    timed_processes = []

    def timed(process, call):
        timed_processes.append(process)
        if process is entered[1] and len(timed_processes) > 6:
            process.exclusion = ("failed", "it died")
        return None if process.exclusion else Sample(seconds=process.seconds, parts={})

    rounds, _ = run(entered, timed=timed)
    assert [len(process.samples) for process in entered] == [6, 2, 6]
    assert ratio_of(entered[2], entered[0], rounds).rounds == 6


def test_a_base_with_wrong_images_gives_no_ratio():
    base, challenger, other = processes(1, 2, 3, alive=True)
    rounds = [{process.contender.name: process.seconds for process in (base, challenger, other)} for _ in range(6)]
    base.exclusion = ("wrong", "a wrong image")
    assert ratio_of(challenger, base, rounds) is None
    for process in (base, challenger, other):
        process.warm_s = process.seconds
    assert base_of([base, challenger, other]) is challenger
    assert ratio_of(other, challenger, rounds).median == pytest.approx(2 / 3)


def test_a_base_can_be_limited_to_a_precision():
    entered = processes(3, 1, 2)
    for process in entered:
        process.warm_s = process.seconds
    assert base_of(entered) is entered[1]
    assert base_of(entered, "fp32") is entered[0]
    assert base_of(entered, "int8") is None


def test_a_variant_is_never_the_base():
    entered = processes(3, 1)
    entered[1].contender = contender("calotype:openvino:bf16:cache_interval=2")
    for process in entered:
        process.warm_s = process.seconds
    assert base_of(entered) is entered[0]


def test_contenders_that_do_not_fit_together_run_in_groups_with_the_base():
    entered = processes(1, 1, 1, 1, need_bytes=400)
    assert [[process.contender.name for process in g] for g in groups(entered[0], entered[1:])] == [
        [entered[0].contender.name, process.contender.name] for process in entered[1:]
    ]
    rounds, _ = run(entered)
    assert [ratio_of(process, entered[0], rounds).rounds for process in entered[1:]] == [6, 6, 6]
    assert len(entered[0].samples) == 18


def test_a_contender_larger_than_memory_still_runs():
    entered = processes(1, 1, 1)
    entered[1].need_bytes = 5000
    assert [len(g) for g in groups(entered[0], entered[1:])] == [2, 2]


def test_the_longest_idle_process_ends_first():
    entered = processes(1, 1, 1, alive=True)
    for process, used in zip(entered, (3.0, 1.0, 2.0), strict=True):
        process.last_used = used
    make_room(entered, [entered[0]], 100, lambda: 50 + 30 * sum(not process.alive for process in entered))
    assert [process.alive for process in entered] == [True, False, False]
    make_room(entered, [], 100, lambda: 200)
    assert entered[0].alive
