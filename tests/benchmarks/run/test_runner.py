"""Turns, groups and verdicts, on lanes without processes."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from calotype.benchmarks.run import runner as racing
from calotype.benchmarks.run.contender_process import Sample, Shot, make_room
from calotype.benchmarks.run.runner import Limits, base_of, groups, race, ratio_of
from calotype.benchmarks.suite.contenders import contender

SHOTS = [Shot(prompts=(w,), seeds=(i,), wanted=np.zeros((1, 2, 2, 3), np.uint8)) for i, w in enumerate("ab")]


@dataclass(kw_only=True, eq=False)
class Dummy:
    contender: object
    seconds: float = 1.0
    need_bytes: int = 1
    alive: bool = False
    out: object = None
    last_used: float = 0.0
    samples: list = field(default_factory=list)
    opened: int = 0
    warm_s: float | None = None

    def open(self, shot):
        self.opened += not self.alive
        self.alive = True

    def close(self):
        self.alive = False


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(racing, "_SETTLE_S", 0)
    monkeypatch.setattr(racing, "_RESERVE_BYTES", 0)
    monkeypatch.setattr(racing, "available_bytes", lambda: 1000)


def lanes(*seconds, **more):
    names = ("calotype:fake:fp32", "calotype:fake:bf16", "calotype:fake:fp16", "calotype:fake:int8")
    return [Dummy(contender=contender(n), seconds=s, **more) for n, s in zip(names, seconds, strict=False)]


def run(entered, limits=None, timed=None):
    log = []

    def paint(lane, shot):
        log.append((lane.contender.name, shot.prompts[0]))
        return Sample(seconds=lane.seconds, parts={})

    limits = limits or Limits(rounds=6, budget_s=0)
    rounds = race(entered, entered[0], SHOTS, limits=limits, timed=timed or paint, show=lambda line: None)
    return rounds, log


def test_everybody_paints_the_same_picture_in_a_round_and_all_pictures_come_up():
    _, log = run(lanes(1, 2, 3))
    rounds = [log[i : i + 3] for i in range(0, len(log), 3)]
    assert len(rounds) == 6
    for number, turn in enumerate(rounds):
        assert len({name for name, _ in turn}) == 3
        assert {prompt for _, prompt in turn} == {SHOTS[number % 2].prompts[0]}


@pytest.mark.parametrize("count", [2, 3, 8])
def test_nobody_always_goes_first_or_follows_the_same_one(count):
    group = [Dummy(contender=None) for _ in range(count)]
    orders = [racing._order(group, number) for number in range(40)]
    for order in orders:
        assert sorted(map(id, order)) == sorted(map(id, group))
    assert {id(order[0]) for order in orders} == {id(order[-1]) for order in orders} == set(map(id, group))
    for lane in group:
        before = {id(order[order.index(lane) - 1]) for order in orders if order[0] is not lane}
        assert len(before) >= min(count - 1, 4)


def test_a_pair_takes_turns_evenly():
    pair = [Dummy(contender=None) for _ in range(2)]
    firsts = [racing._order(pair, number)[0] for number in range(12)]
    assert firsts.count(pair[0]) == firsts.count(pair[1])


def test_six_rounds_whatever_the_budget_and_no_more_than_asked():
    assert len(run(lanes(1, 2), Limits(rounds=30, budget_s=0))[1]) == 12
    assert len(run(lanes(1, 2), Limits(rounds=9, budget_s=60))[1]) == 18


def taken(base, rival, seconds):
    return [{base.contender.name: one, rival.contender.name: other} for one, other in seconds]


def test_ratios_are_taken_within_a_round():
    """A machine that slows down to a tenth in the middle changes no ratio."""
    base, rival = lanes(1, 1)
    found = ratio_of(rival, base, taken(base, rival, [(drift, 2 * drift) for drift in (1, 1, 1, 10, 10, 10)]))
    assert (found.median, found.low, found.high, found.verdict) == (0.5, 0.5, 0.5, "behind")


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([1.1, 1.2, 1.1, 1.3, 1.2, 1.1], "ahead"),
        ([1.1, 1.2, 1.1, 1.3, 1.2, 0.9], "level"),  # once slower in six: not sure
        ([0.8] * 6, "behind"),
        ([2.0] * 5, "unknown"),  # five rounds say nothing with certainty
    ],
)
def test_ahead_only_when_the_interval_is(ratios, verdict):
    base, rival = lanes(1, 1)
    assert ratio_of(rival, base, taken(base, rival, [(r, 1.0) for r in ratios])).verdict == verdict


def test_one_that_never_met_the_base_has_no_ratio():
    base, rival = lanes(1, 1)
    assert ratio_of(rival, base, []) is None


def test_one_that_drops_out_leaves_the_others_racing():
    entered = lanes(1, 2, 3)
    painted = []

    def timed(lane, shot):
        painted.append(lane)
        if lane is entered[1] and len(painted) > 6:
            lane.out = ("failed", "it died")
        return None if lane.out else Sample(seconds=lane.seconds, parts={})

    rounds, _ = run(entered, timed=timed)
    assert [len(lane.samples) for lane in entered] == [6, 2, 6]
    assert ratio_of(entered[2], entered[0], rounds).rounds == 6


def test_a_base_that_turns_out_wrong_makes_nobody_ahead():
    base, rival, other = lanes(1, 2, 3, alive=True)
    rounds = [{lane.contender.name: lane.seconds for lane in (base, rival, other)} for _ in range(6)]
    base.out = ("wrong", "a wrong picture")
    assert ratio_of(rival, base, rounds) is None
    for lane in (base, rival, other):
        lane.warm_s = lane.seconds
    assert base_of([base, rival, other]) is rival
    assert ratio_of(other, rival, rounds).median == pytest.approx(2 / 3)


def test_like_is_held_against_like():
    entered = lanes(3, 1, 2)
    for lane in entered:
        lane.warm_s = lane.seconds
    assert base_of(entered) is entered[1]
    assert base_of(entered, "fp32") is entered[0]
    assert base_of(entered, "int8") is None


def test_a_variant_is_never_what_others_are_held_against():
    entered = lanes(3, 1)
    entered[1].contender = contender("calotype:openvino:bf16:cache_interval=2")
    for lane in entered:
        lane.warm_s = lane.seconds
    assert base_of(entered) is entered[0]


def test_what_memory_does_not_hold_races_in_groups_each_with_the_base():
    entered = lanes(1, 1, 1, 1, need_bytes=400)
    assert [[lane.contender.name for lane in g] for g in groups(entered[0], entered[1:])] == [
        [entered[0].contender.name, lane.contender.name] for lane in entered[1:]
    ]
    rounds, _ = run(entered)
    assert [ratio_of(lane, entered[0], rounds).rounds for lane in entered[1:]] == [6, 6, 6]
    assert len(entered[0].samples) == 18


def test_one_larger_than_memory_still_gets_its_race():
    entered = lanes(1, 1, 1)
    entered[1].need_bytes = 5000
    assert [len(g) for g in groups(entered[0], entered[1:])] == [2, 2]


def test_room_is_made_of_the_longest_idle():
    entered = lanes(1, 1, 1, alive=True)
    for lane, used in zip(entered, (3.0, 1.0, 2.0), strict=True):
        lane.last_used = used
    make_room(entered, [entered[0]], 100, lambda: 50 + 30 * sum(not lane.alive for lane in entered))
    assert [lane.alive for lane in entered] == [True, False, False]
    make_room(entered, [], 100, lambda: 200)
    assert entered[0].alive
