"""Kernels against their references without a GPU: the tests of tests/gpu, in Triton's interpreter.

The interpreter is chosen when triton is imported, and so has a process of its own: here nothing else is changed by it.
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
    """What every file came to: a line for each test that did not pass, none where all did. No file is left out."""
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
    found: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        failed = [f"{case.get('name')}: {part.get('message')}" for part in case if part.tag in ("failure", "error")]
        reasons = [str(part.get("message")) for part in case if part.tag == "skipped"]
        skipped = [f"{case.get('name')} was skipped: {why}" for why in reasons if why not in NEEDS_A_GPU]
        found.setdefault(str(case.get("classname")).rpartition(".")[2], []).extend(failed + skipped)
    assert found, done.stdout + done.stderr
    return found


@pytest.mark.parametrize("file", FILES)
def test_it_passes_in_the_interpreter(file, outcomes):
    assert outcomes[file] == []


def test_every_kernel_is_among_them():
    kernels = {path.stem for path in (FOLDER.parent.parent / "kernels").glob("*.py")} - {"__init__", "launch"}
    assert {path.stem.removeprefix("test_") for path in (FOLDER / "kernels").glob("test_*.py")} == kernels
