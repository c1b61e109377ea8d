"""The check of a GPU on a CPU: every stage with a small case of each kind, and the driver's deadlines and output."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from calotype.benchmarks.gpu_check import __main__ as driver
from calotype.benchmarks.gpu_check.__main__ import main, run_all, summary
from calotype.benchmarks.gpu_check.stage import STAGES, Stage, run_stage

ROOT = Path(__file__).parents[3]
INTERPRETED = [name for name, stage in STAGES.items() if stage.interprets]
# One process for all of them: each would import torch, diffusers and transformers again.
WALK = """
import json, sys
from calotype.benchmarks.gpu_check.stage import run_stage
print(json.dumps([run_stage(name, device="cpu", tiny=True) for name in sys.argv[1:]], default=str))
"""


@pytest.fixture(scope="module")
def walked() -> dict[str, dict]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", WALK, *INTERPRETED],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=True,
    )
    return {each["stage"]: each for each in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.parametrize("name", INTERPRETED)
def test_every_stage_ends_well(name, walked):
    assert walked[name]["status"] == "ok", walked[name]["lines"]
    assert walked[name]["lines"]


def test_stages_tell_what_they_measured(walked):
    assert {"torch", "triton", "diffusers"} <= set(walked["environment"]["versions"])
    assert walked["step"]["counts"]["traced"] > 50
    assert any(name.startswith("without ") for name in walked["step"]["variants"])
    assert {row["kind"] for row in walked["sweeps"]["rows"]} == {"convolution", "matrix product", "attention"}
    assert {each["kernel"]: each["usable"] for each in walked["right"]["attention"]}["triton"] is True
    assert all(result.startswith("ok") for result in walked["images"]["checks"].values())


def test_kernels_compile_without_a_gpu():
    results = run_stage("compile", device="cpu", tiny=True)
    assert results["status"] == "ok"
    assert results["compiled"] == 2


def test_an_error_of_a_stage_is_a_result(monkeypatch):
    monkeypatch.setitem(STAGES, "step", Stage(function="measured:nothing", seconds=1))
    results = run_stage("step", device="cpu", tiny=True)
    assert results["status"].startswith("failed: AttributeError")
    assert "nothing" in "\n".join(results["lines"])


def test_the_driver_ends_a_stage_that_takes_too_long_and_goes_on(monkeypatch, tmp_path):
    """The first stage sleeps, the second dies, and there is no time for the third."""
    codes = iter(["import time; time.sleep(60)", "import os; os.abort()"])
    real = subprocess.Popen
    monkeypatch.setattr(driver.subprocess, "Popen", lambda _, **more: real([sys.executable, "-c", next(codes)], **more))
    monkeypatch.setattr(driver, "_LEAST_S", 0.2)
    monkeypatch.setattr(driver, "STAGES", {"a": Stage(function="", seconds=0.5), "b": Stage(function="", seconds=20)})
    results = run_all(["a", "b"], out=tmp_path, deadline_s=30, options=(), show=lambda line: None)
    assert ["ended after" in results[0]["status"], "-6" in results[1]["status"]] == [True, True]
    assert [each["stage"] for each in json.loads((tmp_path / "check.json").read_text())] == ["a", "b"]
    late = run_all(["b"], out=tmp_path, deadline_s=0.1, options=(), show=lambda line: None)
    assert late[0]["status"].startswith("skipped")


def test_the_summary_has_at_most_eighty_lines():
    results = [
        {"stage": name, "status": "ok", "seconds": 1.0, "lines": [f"line {i} " + "x" * 300 for i in range(count)]}
        for name, count in (("a", 100), ("b", 1), ("c", 50), ("d", 0))
    ]
    lines = summary(results)
    assert 70 <= len(lines) <= 80
    assert max(map(len, lines)) <= 150
    assert sum(line.startswith(("a:", "b:", "c:", "d:")) for line in lines) == 4


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["--device", "cpu"], ["--tiny", "--deadline", "0"], ["--tiny", "--deadline", "nan"]]
)
def test_wrong_arguments_are_errors(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*arguments, "--out", str(tmp_path)])
    assert "usage" in capsys.readouterr().err
