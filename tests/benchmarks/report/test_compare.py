"""Tests of the comparison of two runs: planted changes are detected, noise is not, and a change of the machine is
reported.
"""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from calotype.benchmarks.report.compare import compare, ratio_interval
from calotype.benchmarks.report.table import show_comparison
from tests.helpers.benchmarks import runs

NAME = "calotype:openvino:bf16"


def one_row(values: dict, run: dict | None = None):
    return runs.recorded(runs.row(NAME, **({"seconds": 0.2} | values)), **(run or {}))


def pair(old: dict, new: dict, *, threshold: float = 0.05, new_run: dict | None = None):
    """Compare two runs of one row, at 5 % by default."""
    return compare(one_row(old), one_row(new, new_run), threshold=threshold)


def timed(median: float, seed: int, count: int = 12) -> dict:
    return {"speed": runs.speed(runs.samples(median, count, seed=seed, noise=0.03))}


def rendered(comparison, width: int = 160) -> str:
    out = io.StringIO()
    show_comparison(comparison, Console(file=out, width=width, force_terminal=True, color_system=None))
    return out.getvalue()


def test_a_planted_slowdown_is_detected_and_pure_noise_is_not():
    detected = moved = regressed = 0
    for seed in range(200):
        old = timed(0.2, 2 * seed)
        slow, same = (pair(old, timed(0.2 * by, 2 * seed + 1)) for by in (1.1, 1.0))
        detected += slow.regressed
        moved += same.changes[0].moved != "level"
        regressed += same.regressed
    # 10 % against noise of 3 %: the measured ratio itself is below 1.05 in one of three hundred.
    assert detected >= 196
    # At most one in twenty, plus four standard deviations of 200 trials.
    assert 1 <= moved <= 200 * (0.05 + 4 * np.sqrt(0.05 * 0.95 / 200))
    assert regressed <= 2


@pytest.mark.parametrize("count", [6, 15])
def test_the_interval_covers_the_true_ratio(count):
    random = np.random.default_rng(count)
    covered = 0
    for _ in range(200):
        low, high = ratio_interval(np.exp(random.normal(0, 0.2, count)), 2 * np.exp(random.normal(0, 0.2, count)))
        covered += low <= 2 <= high
    assert covered >= 200 * (0.95 - 4 * np.sqrt(0.05 * 0.95 / 200))


def test_the_same_runs_give_the_same_comparison():
    one, two = (pair(timed(0.2, 1), timed(0.23, 2)) for _ in range(2))
    assert one == two


def test_the_threshold_is_an_argument():
    slower = timed(0.2, 1), timed(0.22, 2)
    assert pair(*slower, threshold=0.02).regressed
    loose = pair(*slower, threshold=0.2)
    assert not loose.regressed
    assert loose.changes[0].moved == "slower"  # still reported


def test_faster_is_no_regression():
    result = pair(timed(0.2, 1), timed(0.1, 2))
    assert result.changes[0].moved == "faster"
    assert result.changes[0].ratio == pytest.approx(0.5, rel=0.05)
    assert not result.regressed


def test_too_few_samples_are_unknown_and_no_regression():
    result = pair(timed(0.2, 1), timed(0.6, 2, count=5))
    assert result.changes[0].moved == "unknown"
    assert result.changes[0].low is None
    assert not result.regressed
    assert "12 and 5 samples" in rendered(result)


@pytest.mark.parametrize("status", ["wrong", "failed", "cannot"])
def test_a_row_that_was_ok_and_is_not_is_a_regression(status):
    result = pair({}, {"status": status, "reason": "because it is so"})
    assert result.regressed
    assert result.changes[0].ratio is None  # no speed of a row that is not ok
    assert f"was ok, is {status}" in rendered(result)
    assert "because it is so" in rendered(result)
    assert not pair({"status": status}, {"status": status}).regressed
    assert not pair({"status": status}, {}).regressed


@pytest.mark.parametrize(
    ("old", "new", "worse"),
    [(40.0, 38.5, True), (40.0, 39.5, False), (95.0, 92.0, False), (100.0, 60.0, True), (40.0, 50.0, False)],
)
def test_psnr_may_fall_by_a_decibel(old, new, worse):
    """Above 80 dB, single pixels differ by one level."""
    assert pair({"psnr": old}, {"psnr": new}).regressed is worse


def test_the_judge_must_not_accept_fewer_images():
    old, new = ({"quality": runs.quality(40.0, judge=judge)} for judge in (1.0, 0.875))
    assert pair(old, new).regressed
    assert not pair(new, old).regressed
    assert not pair(old, {"quality": runs.quality(40.0)}).regressed


@pytest.mark.parametrize(
    ("threshold", "rise", "worse"), [(0.0, 1.04, False), (0.0, 1.06, True), (0.2, 1.1, False), (0.2, 1.3, True)]
)
@pytest.mark.parametrize("where", ["host_peak_bytes", "device_peak_bytes"])
def test_memory_may_rise_by_the_threshold_or_by_five_per_cent(where, threshold, rise, worse):
    result = pair({where: 10**9}, {where: int(10**9 * rise)}, threshold=threshold)
    assert result.regressed is worse


def test_rows_of_only_one_run_are_listed():
    one, two, three = (runs.row(name) for name in ("a:b:fp32", "c:d:fp32", "e:f:fp32"))
    result = compare(runs.recorded(one, two), runs.recorded(two, replace(three, case_id="other")), threshold=0.05)
    assert [change.contender for change in result.changes] == ["c:d:fp32"]
    assert (result.only_old, result.only_new) == (("demo-128 a:b:fp32",), ("other e:f:fp32",))
    assert "only in the old run: demo-128 a:b:fp32" in rendered(result)
    assert not result.regressed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device": "Another"}, "another device: A Processor (2 cores), now Another"),
        ({"threads": 4}, "2 threads, now 4"),
        ({"peaks": {"fp32": 1.2e11}}, "the measured fp32 peak: 150 GFLOP/s, now 120 GFLOP/s (-20%)"),
    ],
)
def test_a_machine_that_changed_is_reported(change, words):
    assert words in rendered(pair({}, {}, new_run=change))


def test_peaks_within_five_per_cent_are_the_same_machine():
    result = pair({}, {}, new_run={"peaks": {"fp32": 1.5e11 * 0.96}})
    assert result.machine == ()
    assert result.changes[0].corrected is None


def test_a_slower_machine_is_no_regression_of_the_code():
    """The row takes a quarter more time, at a peak of four fifths."""
    slower = timed(0.2, 1), timed(0.25, 2)
    assert pair(*slower).regressed
    result = pair(*slower, new_run={"peaks": {"fp32": 1.2e11}})
    assert not result.regressed
    assert result.changes[0].ratio == pytest.approx(1.25, rel=0.05)
    assert result.changes[0].corrected == pytest.approx(1.0, rel=0.05)
    assert pair(timed(0.2, 1), timed(0.35, 2), new_run={"peaks": {"fp32": 1.2e11}}).regressed


def test_as_json():
    result = pair(timed(0.2, 1), timed(0.3, 2))
    data = json.loads(json.dumps(result.to_json()))
    assert data["regressed"] is True
    assert data["changes"][0]["contender"] == NAME
    assert data["changes"][0]["moved"] == "slower"


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_text_names_what_regressed_at_every_width(width):
    text = rendered(pair(timed(0.2, 1), timed(0.3, 2)), width)
    assert max(map(len, text.splitlines())) <= width
    assert f"regressed: {NAME} (demo-128): " in text
    assert "slower (more than 5%)" in " ".join(text.split())
    assert "none regressed past 5%" in rendered(pair({}, {}))
