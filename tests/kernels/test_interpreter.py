"""Kernels compared with their references without a GPU: run tests/gpu in Triton's interpreter.

Importing triton selects the interpreter, so it runs in a separate process and does not affect other tests.
"""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

FOLDER = Path(__file__).parent.parent / "gpu"
NEEDS_A_GPU = ("this is about a GPU's memory", "this needs a GPU and tensorrt")
FILES = sorted(path.stem for path in FOLDER.rglob("test_*.py"))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, list[str]]:
    """For each file, a line for each test that did not pass. Every file has an entry."""
    report = tmp_path_factory.mktemp("interpreter") / "report.xml"
    command = [sys.executable, "-P", "-m", "pytest", f"--confcutdir={FOLDER}", f"--junit-xml={report}"]
    done = subprocess.run(
        [*command, "-q", "-p", "no:cacheprovider", str(FOLDER)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=FOLDER.parent.parent,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert report.exists(), done.stdout + done.stderr
    outcomes: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        failed = [f"{case.get('name')}: {part.get('message')}" for part in case if part.tag in ("failure", "error")]
        reasons = [str(part.get("message")) for part in case if part.tag == "skipped"]
        skipped = [f"{case.get('name')} was skipped: {why}" for why in reasons if why not in NEEDS_A_GPU]
        outcomes.setdefault(str(case.get("classname")).rpartition(".")[2], []).extend(failed + skipped)
    assert outcomes, done.stdout + done.stderr
    return outcomes


@pytest.mark.parametrize("file", FILES)
def test_it_passes_in_the_interpreter(file, outcomes):
    assert outcomes[file] == []


def test_every_kernel_has_tests():
    kernels = {path.stem for path in (FOLDER.parent.parent / "kernels").glob("*.py")} - {"__init__", "launch"}
    assert {path.stem.removeprefix("test_") for path in (FOLDER / "kernels").glob("test_*.py")} == kernels
