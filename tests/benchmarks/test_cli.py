"""Tests of the command `calotype bench`."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from calotype import CalotypeError
from calotype.benchmarks.cli import bench
from calotype.benchmarks.measure.record import read
from calotype.benchmarks.run import suite_run


def invoke(*words):
    return CliRunner().invoke(bench, list(map(str, words)))


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The output and the folder of a run with the fake backend."""
    folder = tmp_path_factory.mktemp("bench") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(suite_run.peaks, "measure", lambda **_: {"fp32": 1e12})
        case = "model=demo steps=2 backend=fake prompts=1 rounds=6 budget_s=0"
        result = invoke("--case", case, "--output", folder, "--threads", 1)
    assert result.exit_code == 0, result.output
    return result, folder


def test_the_last_line_is_json(ran):
    result, folder = ran
    last = json.loads(result.stdout.splitlines()[-1])
    assert last["record"] == str(folder / "run.jsonl")
    (row,) = last["rows"]
    assert (row["contender"], row["status"], row["verdict"], row["runs"]) == ("calotype:fake:fp32", "ok", "base", 6)


def test_a_run_writes_a_table_a_record_a_page_and_images(ran):
    result, folder = ran
    assert "calotype:fake:fp32" in result.stdout
    assert "calotype: opening calotype:fake:fp32" in result.stderr
    assert (folder / "report.html").stat().st_size > 10_000
    recorded = read(folder)
    assert recorded.run.preset == "case"
    assert recorded.run.command.startswith("calotype bench --case 'model=demo steps=2")
    assert len(recorded.images(recorded.rows[0])) == 1


def test_a_run_compared_with_itself_has_not_changed(ran):
    _, folder = ran
    result = invoke("compare", folder, folder)
    assert result.exit_code == 0, result.output
    assert json.loads(invoke("compare", folder, folder, "--json").stdout)["regressed"] is False


def test_a_planted_slowdown_exits_with_1(ran, tmp_path):
    """The times are planted as well: those of a busy machine may be too noisy."""
    _, folder = ran
    lines = [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]
    for name, slower in (("old", 1), ("new", 2)):
        speed = lines[1]["speed"]
        speed["samples_s"] = [slower * s for s in (0.098, 0.099, 0.100, 0.100, 0.101, 0.102)]
        speed |= {"median_s": slower * 0.1, "p10_s": slower * 0.0985, "p90_s": slower * 0.1015}
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert invoke("compare", tmp_path / "old", tmp_path / "new", "--threshold", "0.5").exit_code == 1
    assert invoke("compare", tmp_path / "old", tmp_path / "new", "--threshold", "1.5").exit_code == 0


def test_the_page_can_be_written_again(ran, tmp_path):
    _, folder = ran
    assert invoke("page", folder, "-o", tmp_path / "page.html").exit_code == 0
    assert "<svg" in (tmp_path / "page.html").read_text()


def test_results_are_kept_and_listed(ran, tmp_path):
    _, folder = ran
    result = invoke("results", folder, "--into", tmp_path / "results")
    assert result.exit_code == 0, result.output
    assert "calotype:fake:fp32" in (tmp_path / "RESULTS.md").read_text()


def test_rows_are_listed_without_running():
    result = invoke("--list", "--backend", "openvino-genai", "--filter", "bf16")
    assert result.stdout.split() == ["demo-128-20xeuler-g5-b1", "openvino-genai:bf16"]


@pytest.mark.parametrize(
    ("words", "keyword"),
    [
        (["--preset", "quik"], "ablation"),
        (["--case", "steps=none"], "steps"),
        (["--backend", "openvin"], "openvino"),
        (["--threads", "4096"], "--threads"),
        (["compare", "nowhere", "nowhere"], "nowhere"),
        (["page", "nowhere"], "nowhere"),
        (["peers", "nobody"], "nobody"),
    ],
)
def test_a_wrong_option_is_an_error_with_a_hint(words, keyword, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*words)
    assert isinstance(result.exception, CalotypeError)
    assert keyword in str(result.exception)


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    result = invoke("--output", tmp_path)
    assert "not empty" in str(result.exception)


def test_peers_are_listed():
    result = invoke("peers")
    assert result.exit_code == 0, result.output
    assert "diffusers" in result.stdout


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "calotype.benchmarks", "--list", "--filter", "optimum"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "demo-128-20xeuler-g5-b1  optimum:fp32\n"
