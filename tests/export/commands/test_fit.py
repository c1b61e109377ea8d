"""`calotype fit` and `calotype generate --calls` as commands."""

import os
import sys

import numpy as np
import pytest
from PIL import Image

from calotype.images.png import settings_of
from tests.helpers import fork_server

PROMPT = "a large red circle on a blue background"
SCHEDULE = ("--scheduler", "euler", "--steps", 8)
FIT = ("fit", "demo", *SCHEDULE, "--calls", "5", "--guidance", "4:6", "--calibration", 8, "--held-out", 2)
FIT += ("--no-images", "--backend", "onnxruntime")
GENERATE = ("generate", PROMPT, "--backend", "onnxruntime", "--seed", 3)


def run(*arguments, **environment):
    command = [sys.executable, "-m", "calotype", *map(str, arguments)]
    return fork_server.run(command, capture_output=True, text=True, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def fitted(pipe):
    done = run(*FIT)
    assert done.returncode == 0, done.stderr
    return done


def test_the_table_has_the_fit_first_and_its_rivals(fitted):
    head, first, *rivals = fitted.stdout.splitlines()
    assert "8 steps in 5 calls" in head
    assert first.split()[0] == "fitted"
    names = [row.split("  ")[1] for row in rivals]
    assert {"the same sampler", "forecast"} <= set(names)
    p10 = [float(row.split("p10")[1].split()[0]) for row in (first, *rivals)]
    assert p10 == sorted(p10, reverse=True)


def test_calls_and_like_repeat_the_image(fitted, tmp_path):
    first, again = tmp_path / "a.png", tmp_path / "b.png"
    done = run(*GENERATE, *SCHEDULE, "--calls", 5, "-o", first, "--report")
    assert done.returncode == 0, done.stderr
    assert "fitted" in done.stdout
    assert settings_of(first)["calls"] == "5"
    assert run("generate", "--like", first, "-o", again).returncode == 0
    np.testing.assert_array_equal(np.asarray(Image.open(first)), np.asarray(Image.open(again)))
    assert settings_of(again) == settings_of(first)


def test_min_psnr_and_forecasts_are_options(fitted, tmp_path):
    path = tmp_path / "a.png"
    assert run(*GENERATE, *SCHEDULE, "--min-psnr", 1, "-o", path).returncode == 0
    assert int(settings_of(path)["calls"]) <= 5  # the fewest of what the cache has
    forecast = ("--steps", 4, "--calls", 2, "--calls-from", "forecast")
    assert run(*GENERATE, *forecast, "-o", path).returncode == 0
    assert settings_of(path)["calls_from"] == "forecast"


FAULTS = [
    ((*GENERATE, "--scheduler", "euler", "--steps", 9, "--calls", 5), "calotype fit demo"),
    ((*GENERATE, "--calls", 0), "calls"),
    ((*GENERATE, "--calls", 5, "--min-psnr", 30), "min_psnr"),
    (("fit", "demo", "--calls", "many"), "many"),
    (("fit", "demo", "--calls", "20"), "calls"),
    (("fit", "demo", "--guidance", "9:2"), "guidance"),
    (("fit", "demo", "--guidance", "1:2:3"), "guidance"),
    (("fit", "demo", "--scheduler", "lcm"), "lcm"),
    (("fit", "demo", "--prompts", "nothing.txt"), "nothing.txt"),
    (("fit", "nowhere"), "nowhere"),
]


@pytest.mark.parametrize(("arguments", "keyword"), FAULTS, ids=[" ".join(map(str, a)) for a, _ in FAULTS])
def test_an_error_is_one_message_and_exit_code_1(arguments, keyword, pipe, tmp_path):
    done = fork_server.run(
        [sys.executable, "-m", "calotype", *map(str, arguments)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1
    assert keyword in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
