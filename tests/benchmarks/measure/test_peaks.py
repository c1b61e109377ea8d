"""The best of trials of known speed; every precision has a figure or a reason. No figure is held to a number."""

import json
import time

import pytest
import torch

from calotype.benchmarks.measure import gpu_peaks, peaks
from calotype.benchmarks.measure.trial import PRECISIONS, Peak, Trial
from calotype.export.steps.subprocess_task import Outcome


@pytest.fixture
def brief(monkeypatch):
    """Small products, for a moment each, and torch's settings put back."""
    monkeypatch.setattr(peaks, "_SIZES", (64, 256))
    monkeypatch.setattr(peaks, "_SLICE_S", 0.001)
    monkeypatch.setattr(peaks, "_MOST_S", 0.1)
    monkeypatch.setattr(peaks, "cache_bytes", lambda: 1 << 20)
    monkeypatch.setattr(peaks, "_COPY_BYTES", 4 << 20)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_the_fastest_of_all_is_the_peak(monkeypatch):
    monkeypatch.setattr(peaks, "_SLICE_S", 0.01)
    pauses = iter([0.05, 0.05, 0.02, *[0.05] * 100])  # the first is to warm up
    slow = Trial(name="slow", work=1e6, run=lambda: time.sleep(0.04))
    uneven = Trial(name="uneven", work=1e6, run=lambda: time.sleep(next(pauses)))
    found = peaks.best({"fp32": [slow, uneven], "copy": [slow]})
    assert found["fp32"].by == "uneven"
    assert 1e6 / 0.04 < found["fp32"].value <= 1e6 / 0.02
    assert found["copy"].by == "slow"


def test_it_goes_round_until_nothing_gets_better_and_no_longer(monkeypatch):
    rates = iter([1, 2, 3, 3, 3.02, 2.9, 5])  # of the only trial, round by round
    monkeypatch.setattr(peaks, "_fastest", lambda trial: next(rates))
    trials = {"fp32": [Trial(name="a", work=1, run=lambda: None)]}
    assert peaks.best(trials) == {"fp32": Peak(value=3.02, by="a")}
    assert next(rates) == 5  # after three rounds that brought less than a per cent
    monkeypatch.setattr(peaks, "_MOST_S", 0.0)
    assert peaks.best(trials) == {"fp32": Peak()}


def test_a_figure_or_a_reason_for_each(brief):
    found = peaks.peaks_here(threads=1, device="cpu")
    assert list(found) == [*PRECISIONS, "copy"]
    assert torch.get_num_threads() == 1
    for name, said in found.items():
        assert (said["value"] is None) == bool(said["reason"]), name
        assert bool(said["by"]) == (said["value"] is not None)
    assert found["fp32"]["value"] > 0
    assert found["int8"]["value"] > 0
    assert found["copy"]["value"] > 0
    assert (found["bf16"]["value"] is not None) == bool(peaks._NATIVE["bf16"] & peaks._flags())
    json.dumps(found)


def test_arithmetic_that_the_processor_lacks_is_not_imitated(brief, monkeypatch):
    monkeypatch.setattr(peaks, "_flags", lambda: {"avx2", "fma"})
    found = peaks.peaks_here(threads=1, device="cpu")
    for name in ("bf16", "fp16"):
        assert found[name]["value"] is None
        assert found[name]["reason"] == f"this processor does not compute in {name}"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_both_libraries_have_trials(brief, precision):
    names = {t.name.partition(",")[0] for t in (*peaks._torch_trials(precision), *peaks._openvino_trials(precision, 1))}
    assert names == {"torch", "OpenVINO"}


def test_a_child_measures(brief, monkeypatch):
    asked = {}

    def run_in_subprocess(what, function, **arguments):
        asked.update(arguments, function=function)
        return Outcome(value={"fp32": {"value": 2e9, "by": "a", "reason": ""}}, peak_bytes=0)

    monkeypatch.setattr(peaks, "run_in_subprocess", run_in_subprocess)
    assert peaks.measure(threads=3, device="cuda:1") == {"fp32": 2e9}
    assert asked == {"function": "calotype.benchmarks.measure.peaks:peaks_here", "threads": 3, "device": "cuda:1"}


def test_the_last_line_is_json(monkeypatch, capsys):
    found = {"fp32": Peak(value=2e11, by="torch, product 512"), "fp8": Peak(reason="no such arithmetic")}
    monkeypatch.setattr(peaks, "measured", lambda **_: found)
    monkeypatch.setattr("sys.argv", ["peaks", "--threads", "1"])
    peaks.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["fp32", "200.0", "GFLOP/s", "torch,", "product", "512"]
    assert lines[1].split(None, 1) == ["fp8", "no such arithmetic"]
    assert json.loads(lines[-1]) == {"fp32": 2e11, "fp8": None}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_a_gpu_is_asked_runs_on_a_cpu_too(precision):
    """The calls' shapes, layouts and types; their speed is a GPU's alone."""
    before = torch.backends.cuda.matmul.fp32_precision
    a, b = torch.randn(64, 64), torch.randn(64, 64)
    try:
        got = gpu_peaks._call(precision, a, b)()
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    whole = [(t * 32).clamp(-127, 127).to(torch.int8).float() for t in (a, b)]
    wanted = {"int8": whole[0] @ whole[1].t(), "fp8": a @ b.t()}.get(precision, a @ b)
    assert (got.float() - wanted).norm() / wanted.norm() < {"fp8": 0.1}.get(precision, 0.02)


def test_what_a_gpu_cannot_has_the_reason():
    def cannot():
        raise RuntimeError("_scaled_mm is only supported on newer devices\nand more words")

    assert gpu_peaks._tried(cannot) == Peak(reason="_scaled_mm is only supported on newer devices")
