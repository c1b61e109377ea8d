"""Shared fixtures: a separate store, the models, and a search path with the installed package only."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

# The folder `kernels` of the repository would shadow Hugging Face's package of that name.
ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]

# Set before the first import: tests do not use the user's store. CALOTYPE_TEST_HOME keeps traces between runs.
# Workers of one run share the store of its first process.
_PROVIDED = os.environ.get("CALOTYPE_TEST_HOME") or os.environ.get("CALOTYPE_TESTS_OF_ONE_RUN")
_HOME = _PROVIDED or tempfile.mkdtemp(prefix="calotype-tests-")
os.environ["CALOTYPE_HOME"] = os.environ["CALOTYPE_TESTS_OF_ONE_RUN"] = _HOME
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest  # noqa: E402

import calotype  # noqa: E402
from calotype.export import BuildSpec, build  # noqa: E402
from calotype.export.quality.metrics import psnr  # noqa: E402
from calotype.export.sources.source import find  # noqa: E402
from calotype.export.steps import subprocess_task  # noqa: E402
from tests.helpers.fork_server import ForkedPopen  # noqa: E402


def pytest_sessionfinish() -> None:
    if _PROVIDED is None:
        shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _tasks_in_forks():
    """Run the tasks of builds in forks of one interpreter: a fresh one imports torch and diffusers for seconds."""
    with pytest.MonkeyPatch.context() as patch:
        forked = SimpleNamespace(**vars(subprocess) | {"Popen": ForkedPopen})
        patch.setattr(subprocess_task, "subprocess", forked)
        yield


MIN_DB = {"eager": 60, "onnxruntime": 50, "openvino": 50}


def pytest_addoption(parser):
    parser.addoption("--parity", type=Path, help="write the results of the parity tests to this Markdown file")


class Figures:
    """PSNR of our images to those of diffusers: each must reach the minimum, and goes into the table."""

    def __init__(self):
        self.lowest = {}  # (model, task, scheduler) -> backend -> the lowest dB

    def hold(self, cell, backend, got, expected, peak=1.0):
        figure = psnr(got, expected, peak)
        row = self.lowest.setdefault(cell, {})
        row[backend] = min(figure, row.get(backend, figure))
        assert figure >= MIN_DB[backend], (cell, backend)

    def table(self) -> str:
        schedulers = list(dict.fromkeys(scheduler for _, _, scheduler in self.lowest))
        lines = [f"| model | task | {' | '.join(schedulers)} |", "| --- " * (2 + len(schedulers)) + "|"]
        for model, task in dict.fromkeys(cell[:2] for cell in self.lowest):
            cells = [self._cell(self.lowest.get((model, task, s), {})) for s in schedulers]
            lines.append(f"| {model} | {task} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    @staticmethod
    def _cell(figures) -> str:
        return " / ".join(f"{figures[b]:.0f}" if b in figures else "-" for b in MIN_DB) if figures else ""


@pytest.fixture(scope="session")
def figures(request):
    figures_of_run = Figures()
    yield figures_of_run
    if path := request.config.getoption("--parity"):
        path.write_text(PARITY.format(table=figures_of_run.table()))


PARITY = """# Parity with diffusers

Peak signal-to-noise ratio (PSNR), in dB, of our images to those of diffusers 0.42 with the same weights and seeds, in
float32. The three numbers are the backends `eager`, `onnxruntime` and `openvino`: the lowest value that the tests saw.
The tests require 60, 50 and 50 dB. An empty cell was not compared. All models except the demonstration model are tiny
and have random weights.

`pytest --parity docs/parity.md` writes this page; name test files to run a part.

{table}"""


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    return find("demo")


@pytest.fixture(scope="session")
def pipes() -> dict:
    """The demonstration model on every backend."""
    return {name: calotype.load("demo", backend=name) for name in MIN_DB}


@pytest.fixture(scope="session")
def pipe(pipes):
    return pipes["onnxruntime"]


@pytest.fixture(scope="session")
def saved_plan(tmp_path_factory) -> Path:
    """The demonstration model as a plan in a folder. Tests must not change it."""
    folder = tmp_path_factory.mktemp("plans") / "demo-plan"
    build(BuildSpec(model="demo", output=folder))
    return folder


@pytest.fixture
def fake():
    """A pipeline with the fake backend: everything but the networks is real."""
    return calotype.load("demo", backend="fake")


@pytest.fixture
def model_copy(demo_folder, tmp_path) -> Path:
    """A copy of the demonstration model that a test may damage."""
    return Path(shutil.copytree(demo_folder, tmp_path / "model"))
