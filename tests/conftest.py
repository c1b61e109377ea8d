"""What every test shares: a store of its own, the models, and the rule that tests see the installed package alone."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

# The repository's root holds a folder `kernels`, which would shadow Hugging Face's package of that name.
ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]

# Before anything reads it: tests neither use nor fill the user's store. CALOTYPE_TEST_HOME keeps traces between runs.
# Workers of one run share what its first process made.
_GIVEN = os.environ.get("CALOTYPE_TEST_HOME") or os.environ.get("CALOTYPE_TESTS_OF_ONE_RUN")
_HOME = _GIVEN or tempfile.mkdtemp(prefix="calotype-tests-")
os.environ["CALOTYPE_HOME"] = os.environ["CALOTYPE_TESTS_OF_ONE_RUN"] = _HOME
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest  # noqa: E402

import calotype  # noqa: E402
from calotype.export import BuildSpec, build  # noqa: E402
from calotype.export.quality.metrics import psnr  # noqa: E402
from calotype.export.sources.source import find  # noqa: E402


def pytest_sessionfinish() -> None:
    if _GIVEN is None:
        shutil.rmtree(_HOME, ignore_errors=True)


LEAST_DB = {"eager": 60, "onnxruntime": 50, "openvino": 50}


def pytest_addoption(parser):
    parser.addoption(
        "--parity", type=Path, help="write the figures of the parity tests that ran into this Markdown file"
    )


class Figures:
    """How near our pictures are to diffusers': each is held to what is promised, and kept for the table."""

    def __init__(self):
        self.least = {}  # (model, task, scheduler) -> backend -> dB, the least of those that were held

    def hold(self, cell, backend, got, wanted, peak=1.0):
        figure = psnr(got, wanted, peak)
        row = self.least.setdefault(cell, {})
        row[backend] = min(figure, row.get(backend, figure))
        assert figure >= LEAST_DB[backend], (cell, backend)

    def table(self) -> str:
        schedulers = list(dict.fromkeys(scheduler for _, _, scheduler in self.least))
        lines = [f"| model | task | {' | '.join(schedulers)} |", "| --- " * (2 + len(schedulers)) + "|"]
        for model, task in dict.fromkeys(cell[:2] for cell in self.least):
            cells = [self._cell(self.least.get((model, task, s), {})) for s in schedulers]
            lines.append(f"| {model} | {task} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    @staticmethod
    def _cell(figures) -> str:
        return " / ".join(f"{figures[b]:.0f}" if b in figures else "-" for b in LEAST_DB) if figures else ""


@pytest.fixture(scope="session")
def figures(request):
    kept = Figures()
    yield kept
    if path := request.config.getoption("--parity"):
        path.write_text(PARITY.format(table=kept.table()))


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
    return {name: calotype.load("demo", backend=name) for name in LEAST_DB}


@pytest.fixture(scope="session")
def pipe(pipes):
    return pipes["onnxruntime"]


@pytest.fixture(scope="session")
def saved_plan(tmp_path_factory) -> Path:
    """The demonstration model as a plan in a folder. Nobody may change it."""
    folder = tmp_path_factory.mktemp("plans") / "demo-plan"
    build(BuildSpec(model="demo", output=folder))
    return folder


@pytest.fixture
def fake():
    """A pipeline without networks: everything but the pictures is real."""
    return calotype.load("demo", backend="fake")


@pytest.fixture
def model_copy(demo_folder, tmp_path) -> Path:
    """A copy of the demonstration model that a test may damage."""
    return Path(shutil.copytree(demo_folder, tmp_path / "model"))
