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
_HOME = os.environ.get("CALOTYPE_TEST_HOME") or tempfile.mkdtemp(prefix="calotype-tests-")
os.environ["CALOTYPE_HOME"] = _HOME
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest  # noqa: E402

import calotype  # noqa: E402
from calotype.export import BuildSpec, build  # noqa: E402
from calotype.export.source import find  # noqa: E402


def pytest_sessionfinish() -> None:
    if "CALOTYPE_TEST_HOME" not in os.environ:
        shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    return find("demo")


@pytest.fixture(scope="session")
def pipes() -> dict:
    """The demonstration model on both backends."""
    return {name: calotype.load("demo", backend=name) for name in ("eager", "onnxruntime")}


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
