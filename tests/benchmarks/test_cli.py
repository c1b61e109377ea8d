"""`calotype bench`, as people type it."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from calotype import CalotypeError
from calotype.benchmarks.cli import bench
from calotype.benchmarks.measure.record import read
from calotype.benchmarks.run import suite_run as suite


def invoke(*words):
    return CliRunner().invoke(bench, list(map(str, words)))


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A run of the fake backend: what the terminal shows, and the folder that it leaves."""
    folder = tmp_path_factory.mktemp("bench") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(suite.peaks, "measure", lambda **_: {"fp32": 1e12})
        case = "model=demo steps=2 backend=fake prompts=1 rounds=6 budget_s=0"
        told = invoke("--case", case, "--output", folder, "--threads", 1)
    assert told.exit_code == 0, told.output
    return told, folder


def test_the_last_line_is_json(ran):
    told, folder = ran
    last = json.loads(told.stdout.splitlines()[-1])
    assert last["record"] == str(folder / "run.jsonl")
    (row,) = last["rows"]
    assert (row["contender"], row["status"], row["verdict"], row["runs"]) == ("calotype:fake:fp32", "ok", "base", 6)


def test_a_table_a_record_a_page_and_pictures_are_there(ran):
    told, folder = ran
    assert "calotype:fake:fp32" in told.stdout
    assert "calotype: opening calotype:fake:fp32" in told.stderr
    assert (folder / "report.html").stat().st_size > 10_000
    recorded = read(folder)
    assert recorded.run.preset == "case"
    assert recorded.run.command.startswith("calotype bench --case 'model=demo steps=2")
    assert len(recorded.pictures(recorded.rows[0])) == 1


def test_a_run_against_itself_has_not_moved(ran):
    _, folder = ran
    told = invoke("compare", folder, folder)
    assert told.exit_code == 0, told.output
    assert json.loads(invoke("compare", folder, folder, "--json").stdout)["regressed"] is False


def test_a_planted_slowdown_ends_with_one(ran, tmp_path):
    """Its times are planted too: what a busy machine measures may be too wide to say anything."""
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


def test_the_page_can_be_written_anew(ran, tmp_path):
    _, folder = ran
    assert invoke("page", folder, "-o", tmp_path / "page.html").exit_code == 0
    assert "<svg" in (tmp_path / "page.html").read_text()


def test_results_are_kept_and_listed(ran, tmp_path):
    _, folder = ran
    told = invoke("results", folder, "--into", tmp_path / "results")
    assert told.exit_code == 0, told.output
    assert "calotype:fake:fp32" in (tmp_path / "RESULTS.md").read_text()


def test_rows_are_listed_without_running():
    told = invoke("--list", "--backend", "openvino-genai", "--filter", "bf16")
    assert told.stdout.split() == ["demo-128-20xeuler-g5-b1", "openvino-genai:bf16"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--preset", "quik"], "unknown preset 'quik'; known are quick, cpu, ablation, approximate, gpu, full"),
        (["--case", "steps=none"], "a case's steps is a number"),
        (["--backend", "openvin"], "The nearest: openvino"),
        (["--threads", "4096"], "--threads takes 1 to"),
        (["compare", "nowhere", "nowhere"], "cannot be read"),
        (["page", "nowhere"], "cannot be read"),
        (["peers", "nobody"], "there is no peer called 'nobody'"),
    ],
)
def test_a_fault_is_one_sentence(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = invoke(*words)
    assert isinstance(told.exception, CalotypeError)
    assert said in str(told.exception)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    told = invoke("--output", tmp_path)
    assert "is there already and not empty" in str(told.exception)


def test_peers_say_whether_they_are_ready():
    told = invoke("peers")
    assert told.exit_code == 0, told.output
    assert "diffusers" in told.stdout


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "calotype.benchmarks", "--list", "--filter", "optimum"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "demo-128-20xeuler-g5-b1  optimum:fp32\n"
