"""Tests of the peaks: the best of trials with a known speed, and a figure or a reason for every precision."""

import json
import time

import pytest
import torch

from calotype.benchmarks.measure import peaks, trials
from calotype.benchmarks.measure.peaks import PRECISIONS, Peak
from calotype.benchmarks.measure.trials import PeakTrial
from calotype.export.steps.subprocess_task import Outcome


@pytest.fixture
def brief(monkeypatch):
    """Use small products for a short time, and restore torch's settings."""
    monkeypatch.setattr(trials, "SIZES", (64, 256))
    monkeypatch.setattr(peaks, "_SLICE_S", 0.001)
    monkeypatch.setattr(peaks, "_MAX_SECONDS", 0.1)
    monkeypatch.setattr(trials, "cache_bytes", lambda: 1 << 20)
    monkeypatch.setattr(trials, "_COPY_BYTES", 4 << 20)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_the_fastest_of_all_is_the_peak(monkeypatch):
    monkeypatch.setattr(peaks, "_SLICE_S", 0.01)
    pauses = iter([0.05, 0.05, 0.02, *[0.05] * 100])  # the first is the warm-up
    slow = PeakTrial(name="slow", work=1e6, run=lambda: time.sleep(0.04))
    uneven = PeakTrial(name="uneven", work=1e6, run=lambda: time.sleep(next(pauses)))
    results = peaks.best({"fp32": [slow, uneven], "copy": [slow]}, peaks._host_seconds)
    assert results["fp32"].by == "uneven"
    assert 1e6 / 0.04 < results["fp32"].value <= 1e6 / 0.02
    assert results["copy"].by == "slow"


def test_the_rounds_end_when_no_figure_improves(monkeypatch):
    rates = iter([1, 2, 3, 3, 3.02, 2.9, 5])  # of the only trial, one for each round
    monkeypatch.setattr(peaks, "_SLICE_S", 0.0)
    work = {"fp32": [PeakTrial(name="a", work=1, run=lambda: None)]}
    result = peaks.best(work, lambda trial: 1 / next(rates))
    assert result == {"fp32": Peak(value=pytest.approx(3.02), by="a")}
    assert next(rates) == 5  # after three rounds that improved by less than 1 %
    monkeypatch.setattr(peaks, "_MAX_SECONDS", 0.0)
    assert peaks.best(work, lambda trial: 1.0) == {"fp32": Peak()}


def test_a_figure_or_a_reason_for_each(brief):
    results = peaks.peaks_here(threads=1, device="cpu")
    assert list(results) == [*PRECISIONS, "copy"]
    assert torch.get_num_threads() == 1
    for name, result in results.items():
        assert (result["value"] is None) == bool(result["reason"]), name
        assert bool(result["by"]) == (result["value"] is not None)
    assert results["fp32"]["value"] > 0
    assert results["int8"]["value"] > 0
    assert results["copy"]["value"] > 0
    assert (results["bf16"]["value"] is not None) == bool(peaks._NATIVE["bf16"] & peaks.processor()[0])
    json.dumps(results)


def test_precisions_that_the_processor_lacks_have_a_reason(brief, monkeypatch):
    monkeypatch.setattr(peaks, "processor", lambda: (frozenset({"avx2", "fma"}), "a processor"))
    results = peaks.peaks_here(threads=1, device="cpu")
    for name in ("bf16", "fp16"):
        assert results[name]["value"] is None
        assert name in results[name]["reason"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_both_libraries_have_trials(brief, precision):
    names = {t.name.partition(",")[0] for t in (*trials.torch_on_cpu(precision), *trials.openvino_on_cpu(precision, 1))}
    assert names == {"torch", "OpenVINO"}


def test_a_child_measures(brief, monkeypatch):
    requested = {}

    def run_in_subprocess(what, function, **arguments):
        requested.update(arguments, function=function)
        return Outcome(value={"fp32": {"value": 2e9, "by": "a", "reason": ""}}, peak_bytes=0)

    monkeypatch.setattr(peaks, "run_in_subprocess", run_in_subprocess)
    assert peaks.measure(threads=3, device="cuda:1") == {"fp32": 2e9}
    assert requested == {"function": "calotype.benchmarks.measure.peaks:peaks_here", "threads": 3, "device": "cuda:1"}


def test_the_last_line_is_json(monkeypatch, capsys):
    results = {"fp32": Peak(value=2e11, by="torch, product 512"), "fp8": Peak(reason="no such arithmetic")}
    monkeypatch.setattr(peaks, "measure_peaks", lambda **_: results)
    monkeypatch.setattr("sys.argv", ["peaks", "--threads", "1"])
    peaks.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["fp32", "200.0", "GFLOP/s", "torch,", "product", "512"]
    assert lines[1].split(None, 1) == ["fp8", "no such arithmetic"]
    assert json.loads(lines[-1]) == {"fp32": 2e11, "fp8": None}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_calls_for_a_gpu_run_on_a_cpu_too(precision):
    """This tests the shapes, layouts and types of the calls, not their speed."""
    before = torch.backends.cuda.matmul.fp32_precision
    a, b = torch.randn(64, 64), torch.randn(64, 64)
    try:
        got = trials.matrix_product(precision, a, b)()
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    rounded = [(t * 32).clamp(-127, 127).to(torch.int8).float() for t in (a, b)]
    expected = {"int8": rounded[0] @ rounded[1].t(), "fp8": a @ b.t()}.get(precision, a @ b)
    assert (got.float() - expected).norm() / expected.norm() < {"fp8": 0.1}.get(precision, 0.02)


def test_an_error_of_a_gpu_becomes_the_reason():
    def unsupported_reason():
        raise RuntimeError("_scaled_mm is only supported on newer devices\nand more words")

    assert peaks.on_gpu("fp8", unsupported_reason) == Peak(reason="_scaled_mm is only supported on newer devices")
