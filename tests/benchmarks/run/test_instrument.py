"""Tests of the suite itself, on fakes with known sleeps and known errors: does it report them, and detect wrong images?

Everything is real except for the networks: processes, protocol, rounds, checks, rows. The precision of a fake is only a
label that separates the fakes and sets the limit for its images.
"""

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from calotype import CalotypeError
from calotype.benchmarks.measure.record import read, write
from calotype.benchmarks.run import environments, start_contender, suite_run, workload
from calotype.benchmarks.run.results_row import peak_of
from calotype.benchmarks.run.suite_run import run
from calotype.benchmarks.run.workload import CaseContext, RunSettings
from calotype.benchmarks.suite.cases import Case
from calotype.benchmarks.suite.contenders import Contender
from calotype.benchmarks.suite.presets import PRESETS

STEPS, UNET_MS, DECODE_MS = 3, 60.0, 90.0  # long compared with the delays of a busy machine
IMAGE_S = (STEPS * UNET_MS + DECODE_MS) / 1e3
CASE = Case(steps=STEPS, prompts=2, rounds=6, budget_s=0)


def fake(precision, slower=1.0, **settings):
    sleeps = {"unet": UNET_MS * slower, "vae_decoder": DECODE_MS * slower}
    return Contender(maker="calotype", backend="fake", precision=precision, settings={"sleep_ms": sleeps, **settings})


FAKES = {
    "fast": fake("fp32"),
    "same": fake("fp16"),
    "slow": fake("bf16", slower=2.0),
    "wrong": fake("int8", slower=0.2, error=0.2),
}


@pytest.fixture(scope="module")
def peaks_known():
    """Replace the measurement of the peaks."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            suite_run.peaks, "measure", lambda **_: {"fp32": 1e12, "bf16": None, "fp16": None, "int8": None}
        )
        yield


def settings(folder, **more):
    return RunSettings(preset="fakes", command="-", output=folder, threads=1, show=lambda line: None, **more)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, peaks_known):
    """A run that no other work disturbed, by its own account; a busy machine gets three attempts."""
    for _ in range(3):
        folder = tmp_path_factory.mktemp("run")
        recorded_run = run([replace(CASE, contenders=tuple(FAKES.values()))], settings(folder))
        if not any(row.disturbed_rounds for row in recorded_run.rows):
            break
    write(recorded_run, folder)
    return recorded_run


@pytest.fixture(scope="module")
def rows(recorded):
    return {name: row for name, c in FAKES.items() for row in recorded.rows if row.contender == c.name}


@pytest.mark.timed
@pytest.mark.parametrize(("name", "times"), [("fast", 1), ("same", 1), ("slow", 2)])
def test_known_sleeps_are_reported(rows, name, times):
    """Each quantity is at least its minimum, and a few per cent more: a sleep never ends early."""
    row, known = rows[name], IMAGE_S * times
    assert row.status == "ok"
    assert len(row.speed.samples_s) == 6
    assert known <= row.speed.median_s <= 1.08 * known + 0.01
    unet, decoder = row.parts["unet"], row.parts["vae_decoder"]
    assert unet.calls == STEPS
    assert UNET_MS * STEPS * times / 1e3 <= unet.median_s <= 1.08 * UNET_MS * STEPS * times / 1e3
    assert DECODE_MS * times / 1e3 <= decoder.median_s <= 1.08 * DECODE_MS * times / 1e3
    assert row.speed.median_s - sum(part.median_s for part in row.parts.values()) < 0.1 * known + 0.01
    assert row.speed.images_per_s == pytest.approx(1 / row.speed.median_s)
    assert row.speed.it_per_s <= 1000 / (UNET_MS * times)


@pytest.mark.timed
def test_the_ratio_is_the_known_one(rows):
    ratio = rows["slow"].ratio
    assert ratio.verdict == "behind"
    assert ratio.base in (FAKES["fast"].name, FAKES["same"].name)
    # A busy machine adds some milliseconds to both; the row then counts disturbed rounds.
    assert ratio.median == pytest.approx(0.5, rel=0.1 if rows["slow"].disturbed_rounds else 0.03)
    assert 0.43 <= ratio.low <= ratio.median <= ratio.high <= 0.57
    assert ratio.coverage >= 0.95
    assert ratio.rounds == 6


@pytest.mark.timed
def test_equal_contenders_are_within_a_few_per_cent(rows):
    ratios = [rows[n].ratio for n in ("fast", "same")]
    assert "base" in {r.verdict for r in ratios}
    assert all(0.93 <= r.median <= 1.07 for r in ratios)


@pytest.mark.timed
def test_wrong_images_have_no_speed(rows):
    """It is by far the fastest, but neither the base nor part of a ratio."""
    row = rows["wrong"]
    assert row.status == "wrong"
    assert "float32 eager" in row.reason
    assert (row.speed, row.ratio, row.utilization, row.first_s, dict(row.parts)) == (None, None, None, None, {})
    assert row.quality.psnr_db < 25
    assert rows["slow"].ratio.base != row.contender


@pytest.mark.timed
def test_the_known_error_is_reported(rows):
    """Noise of 0.2 on pixels from -1 to 1 is a tenth of the range, 20 dB; half of the fake's pixels are clipped."""
    assert 19.9 <= rows["wrong"].quality.psnr_min_db <= 24
    for name in ("fast", "same", "slow"):
        assert rows[name].quality.psnr_min_db == 100
        assert rows[name].quality.relative_l2 == 0


@pytest.mark.timed
def test_utilization_is_of_the_measured_peak(rows):
    unet = rows["fast"].parts["unet"]
    assert unet.flops > 1e9
    assert unet.utilization == pytest.approx(unet.flops / unet.median_s / 1e12)
    assert peak_of("bf16", {"fp32": 1.0, "bf16": None}) is None
    assert peak_of("int8+bf16", {"fp32": 1.0, "bf16": 2.0, "int8": 4.0}) == 4.0


@pytest.mark.timed
def test_a_process_has_memory_and_threads(rows):
    assert 20 << 20 < rows["fast"].host_peak_bytes < 4 << 30
    assert rows["fast"].threads == 1


@pytest.mark.timed
def test_images_are_kept_with_the_reference(recorded, rows):
    assert len(recorded.images(rows["wrong"])) == 1  # it was excluded after the first
    assert len(recorded.images(rows["fast"])) == len(recorded.reference(rows["fast"])) == 2


@pytest.mark.timed
def test_the_record_reads_back(recorded):
    assert read(recorded.folder) == recorded


def test_memory_that_a_contender_holds_is_reported(tmp_path, peaks_known):
    held = {"fp32": 0, "bf16": 300}
    contenders = tuple(fake(p, slower=0.01, hold_mib=mib) for p, mib in held.items())
    small, large = run([replace(CASE, contenders=contenders)], settings(tmp_path)).rows
    assert (large.host_peak_bytes - small.host_peak_bytes) / 2**20 == pytest.approx(300, rel=0.05)


def test_a_contender_that_dies_has_a_reason_and_the_others_go_on(tmp_path, peaks_known):
    contenders = (fake("fp32", slower=0.01), fake("bf16", slower=0.01, die_at=4))
    good, dead = run([replace(CASE, contenders=contenders)], settings(tmp_path)).rows
    assert (good.status, len(good.speed.samples_s)) == ("ok", 6)
    assert dead.status == "failed"
    assert "signal SIGSEGV" in dead.reason
    assert dead.speed is None


@pytest.mark.timed
def test_other_load_is_noticed(tmp_path, peaks_known):
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        (row,) = run([replace(CASE, contenders=(fake("fp32"),))], settings(tmp_path)).rows
        assert burner.poll() is None
    finally:
        burner.kill()
        burner.wait()
    assert row.disturbed_rounds >= 5


def test_contenders_that_cannot_are_rows_with_a_reason(tmp_path, peaks_known, monkeypatch):
    monkeypatch.setattr(environments, "python_of", lambda name: None)
    monkeypatch.setattr(environments, "failure_reason", lambda name: None)
    cases = [
        replace(CASE, contenders=(suite_contender("optimum:fp32"), suite_contender("tensorrt:fp32"))),
        replace(CASE, device="cuda", contenders=(suite_contender("diffusers:fp16"),)),
        replace(CASE, model="no-such-model", contenders=(fake("fp32"),)),
    ]
    monkeypatch.setattr(suite_run, "has_gpu", lambda: False)
    rows = run(cases, settings(tmp_path)).rows
    assert [row.status for row in rows] == ["cannot"] * 4
    keywords = "calotype bench peers optimum", "cuda", "NVIDIA GPU", "no-such-model"
    for row, words in zip(rows, keywords, strict=True):
        assert words in row.reason


@pytest.mark.parametrize("preset", PRESETS)
def test_every_contender_of_every_preset_starts_or_has_a_reason(preset, monkeypatch):
    monkeypatch.setattr(start_contender, "plan_for", lambda *_: None)
    monkeypatch.setattr(start_contender, "need_bytes", lambda *_: 1)
    for case in PRESETS[preset]:
        context = CaseContext(case=case, settings=settings(Path()), source=None, job={})
        for contender in case.contenders:
            with suppress(CalotypeError):  # any other error fails the test
                assert start_contender.start_contender(contender, context).file.is_file()


def test_a_plan_in_place_of_a_model_is_refused(saved_plan, tmp_path, peaks_known):
    (row,) = run([replace(CASE, model=str(saved_plan), contenders=(fake("fp32"),))], settings(tmp_path)).rows
    assert "plan" in row.reason


def test_a_fault_of_the_suite_leaves_the_other_cases_their_rows(tmp_path, peaks_known, monkeypatch):
    real = workload.source_of

    def broken(case):
        if case.model == "broken":
            raise ZeroDivisionError("planted")
        return real(case)

    monkeypatch.setattr(workload, "source_of", broken)
    cases = [replace(CASE, model=m, contenders=(fake("fp32", slower=0.01),)) for m in ("demo", "broken")]
    written = []
    rows = run(cases, settings(tmp_path), written=written.append).rows
    assert [row.status for row in rows] == ["ok", "cannot"]
    assert rows[1].reason == "the benchmark suite failed: planted"
    assert [len(recorded.rows) for recorded in written] == [1, 2]
    assert ["stopped after 1 of 2 cases" in recorded.run.notes for recorded in written] == [True, False]


def suite_contender(name):
    from calotype.benchmarks.suite.contenders import contender

    return contender(name)


@pytest.mark.timed
def test_nothing_of_a_run_is_left_running(recorded):
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdigit() and f"PPid:\t{os.getpid()}\n" in (folder / "status").read_text():
                assert b"serve.py" not in (folder / "cmdline").read_bytes()
