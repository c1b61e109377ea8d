"""Tests of the committed runs, and of RESULTS.md, which is generated from them."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from calotype.benchmarks.measure.record import read, write
from calotype.benchmarks.report import results
from calotype.benchmarks.report.columns import digits
from calotype.errors import InputError
from tests.helpers.benchmarks import runs


@pytest.fixture
def a_run():
    base = runs.samples(0.4, seed=1)
    rows = [
        runs.row(runs.BASE, 0.4, 100.0, ratio=replace(runs.ratio(base, base), verdict="base")),
        runs.row("calotype:openvino:bf16", 0.2, 56.4, ratio=runs.ratio(base, runs.samples(0.2)), disturbed_rounds=3),
        runs.row("optimum:fp32", None, None, status="cannot", reason="no | such\n`model` <here>"),
    ]
    return runs.recorded(*rows)


def commit(recorded, into) -> None:
    """Write a run to the place where `keep` puts it."""
    write(recorded, into / results.result_name(recorded.run))


def test_names_are_short_and_safe_as_files():
    again = "calotype bench --preset cpu"
    name = "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz / with a very long name"
    run = runs.run(device=name, preset="cpu", command=again)
    assert results.result_name(run) == "2026-11-24-intel-xeon-platinum-8481c-cpu-2-70ghz-wi-cpu"
    part = runs.run(device=name, preset="cpu", command=f"{again} --filter sd15")
    assert results.result_name(part).startswith(results.result_name(run) + "-")
    assert re.fullmatch(
        r"[a-z0-9-]+", results.result_name(runs.run(device="../../Ü \\ NVIDIA H100 80GB HBM3", preset="a b"))
    )


def test_a_kept_run_is_its_lines_of_json_without_the_page(a_run, tmp_path):
    folder = results.keep(a_run, tmp_path / "results")
    assert folder == tmp_path / "results" / "2026-11-24-a-processor-2-cores-quick"
    assert [path.name for path in folder.iterdir()] == ["run.jsonl"]
    assert read(folder).rows == a_run.rows
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # no partial folder next to it


def test_a_later_run_of_the_day_replaces_it(a_run, tmp_path):
    results.keep(a_run, tmp_path)
    folder = results.keep(replace(a_run, rows=a_run.rows[:1]), tmp_path)
    assert len(read(folder).rows) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_is_too_large_for_git_is_refused_and_nothing_changes(a_run, tmp_path, monkeypatch):
    folder = results.keep(a_run, tmp_path)
    monkeypatch.setattr(results, "LIMIT_BYTES", 1024)
    with pytest.raises(InputError, match="1 KiB"):
        results.keep(replace(a_run, rows=a_run.rows[:1]), tmp_path)
    assert read(folder).rows == a_run.rows
    assert len(list(tmp_path.iterdir())) == 1


def test_results_match_the_files(a_run, tmp_path):
    into = tmp_path / "results"
    results.keep(a_run, into)
    path = results.write(into)
    assert path == tmp_path / "RESULTS.md"
    text = path.read_text()
    assert text == results.generate(into)
    assert "## A Processor (2 cores)" in text.splitlines()
    assert "\n### 2026-11-24: demo, " in text
    assert "`python -m calotype.benchmarks --preset quick`" in text
    assert "[run.jsonl](results/2026-11-24-a-processor-2-cores-quick/run.jsonl)" in text
    assert "torch 2.13.0" in text
    assert "memory 8.00 GiB" in text
    assert "150 GFLOP/s" in text


def test_every_line_of_a_table_has_the_same_number_of_cells(a_run, tmp_path):
    commit(a_run, tmp_path / "results")
    lines = [line for line in results.generate(tmp_path / "results").splitlines() if line.startswith("|")]
    assert len(lines) == 5
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_a_hostile_reason_stays_one_line_of_text(a_run, tmp_path):
    commit(a_run, tmp_path / "results")
    text = results.generate(tmp_path / "results")
    (line,) = [line for line in text.splitlines() if "optimum:fp32" in line]
    assert "cannot run: no \\| such \\`model\\` \\<here\\> |" in line


def test_wrong_images_have_no_speed(tmp_path):
    seconds = 0.7351
    wrong = runs.row("openvino-genai:bf16", seconds, 12.3, status="wrong", reason="so it is")
    commit(runs.recorded(runs.row(runs.BASE, 0.4), wrong), tmp_path / "results")
    text = results.generate(tmp_path / "results")
    (line,) = [line for line in text.splitlines() if "openvino-genai:bf16" in line]
    assert "wrong images: PSNR 12.3 dB" in line
    for figure in (wrong.speed.median_s, wrong.speed.images_per_s, wrong.speed.it_per_s, wrong.first_s):
        assert digits(figure) not in text


def test_the_newest_comes_first_for_each_device(tmp_path):
    row = runs.row("a:b:fp32")
    for date, device in (("2026-11-20", "One"), ("2026-11-22", "Two"), ("2026-11-24", "One"), ("2026-11-23", "Two")):
        commit(runs.recorded(row, date=f"{date}T10:00:00Z", device=device), tmp_path / "results")
    lines = results.generate(tmp_path / "results").splitlines()
    heads = [line.partition(":")[0] for line in lines if line.startswith("##")]
    assert heads == ["## One", "### 2026-11-24", "### 2026-11-20", "## Two", "### 2026-11-23", "### 2026-11-22"]


def test_a_page_that_would_be_too_long_lists_the_oldest_runs_in_a_line_each(tmp_path):
    rows = [runs.row(f"calotype:b{i}:fp32") for i in range(20)]
    for day in range(1, 16):
        commit(runs.recorded(*rows, date=f"2026-11-{day:02}T10:00:00Z"), tmp_path / "results")
    lines = results.generate(tmp_path / "results").splitlines()
    assert len(lines) <= results.LIMIT_LINES
    assert [line for line in lines if line.startswith("### ")][-1] == "### Older runs"
    assert "- 2026-11-01: " in lines[-2] + lines[-1]
    assert sum("run.jsonl](" in line for line in lines) == 15


def test_without_runs_there_are_no_tables(tmp_path):
    assert results.generate(tmp_path).count("\n#") == 0


def test_the_committed_results_match_their_files():
    folder = Path(__file__).resolve().parent.parent.parent.parent / "benchmarks" / "results"
    text = (folder.parent / "RESULTS.md").read_text()
    assert text == results.generate(folder)
    assert len(text.splitlines()) <= results.LIMIT_LINES
