"""The README's Python runs as it stands, each block in a fresh interpreter in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_there_are_snippets():
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_snippet_runs(code, pipe, tmp_path):
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_commands_it_names_exist():
    told = ""
    for command in (
        ["generate"],
        ["build"],
        ["inspect"],
        ["doctor"],
        ["bench"],
        ["bench", "peers"],
        ["bench", "compare"],
        ["cache", "ls"],
        ["cache", "rm"],
        ["cache", "gc"],
        ["cache", "verify"],
    ):
        line = [sys.executable, "-m", "calotype", *command, "--help"]
        done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
        assert done.returncode == 0, done.stderr
        told += done.stdout
    line = [sys.executable, "-m", "calotype.benchmarks.gpu_close", "--help"]
    told += subprocess.run(
        line, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"}
    ).stdout
    told += "--benchmark-only --confcutdir"  # pytest-benchmark's, and pytest's
    for option in set(re.findall(r"(?<=[ \[])--[a-z][a-z-]*", README)):
        assert option in told, option


def test_pictures_are_there():
    for path in re.findall(r'src="([^"]+)"', README):
        assert (Path(__file__).parent.parent / path).is_file()
