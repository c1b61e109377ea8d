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
os.environ["CALOTYPE_PRECISION"] = "fp32"  # on every CPU: images are compared with float32

import pytest  # noqa: E402

import calotype  # noqa: E402
from calotype.export import BuildSpec, build  # noqa: E402
from calotype.export.sources.source import find  # noqa: E402
from calotype.export.steps import subprocess_task  # noqa: E402
from tests.helpers.cores import keep_to_one_core  # noqa: E402
from tests.helpers.fork_server import ForkedPopen  # noqa: E402
from tests.helpers.parity import MIN_DB, PARITY, Figures  # noqa: E402

if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    keep_to_one_core(worker)

# The files that take longest, in the order in which workers start them. While one traces the models of test_parity, the
# others have files that need none of these, because workers wait for each other's traces.
SLOWEST = (
    *("kernels/test_interpreter.py", "export/builder/test_tuning.py", "export/families/test_parity.py"),
    *(
        "export/video/test_parity.py",
        "export/t2i_adapters/test_parity.py",
        "export/control_unions/test_control_unions.py",
    ),
    *("test_package.py", "kernels/test_resources.py", "export/builder/test_build.py", "export/tools/test_steering.py"),
    *("export/families/test_sd15_shape.py", "export/families/test_auto.py", "export/families/test_set_lora.py"),
    *("export/tensorrt/test_rtx.py", "test_readme.py", "tensorrt/test_precisions.py", "export/tools/test_train.py"),
    *("export/families/test_controlnet.py", "engine/backends/openvino/test_session.py", "engine/test_parity.py"),
    *("export/families/test_few_steps.py", "export/families/test_families.py", "export/store/test_kills.py"),
    *("engine/test_cli.py", "test_lean.py", "export/tools/test_demo_model.py", "engine/sampling/test_matrix.py"),
    *("export/sources/test_single_file_components.py", "export/families/test_latents_without_text.py"),
    *("engine/test_prompting.py", "engine/system/test_forks.py", "tensorrt/test_options.py"),
)
# What `make check` leaves out: tests of these folders and files, and all that use these fixtures.
SLOW = (
    "benchmarks/gpu_check",
    "benchmarks/run",
    "engine/drop_in",
    "test_notebooks.py",
    "export/builder",
    "export/control_unions",
    "export/families",
    "export/precision",
    "export/tools",
)
SLOW += (
    "export/lora",
    "export/sources",
    "export/store/test_kills.py",
    "export/t2i_adapters",
    "export/tensorrt",
    "export/video",
    "gpu",
    "kernels",
    "tensorrt",
    "test_docs.py",
    "test_package.py",
)
SLOW_FIXTURES = {"pipe", "pipes", "saved_plan", "wheel"}


def pytest_collection_modifyitems(items) -> None:
    """Start with the longest files, and mark what is slow."""
    rank = {name: place for place, name in enumerate(SLOWEST)}
    folder = Path(__file__).parent
    files = {item: item.path.relative_to(folder).as_posix() for item in items if item.path.is_relative_to(folder)}
    items.sort(key=lambda item: rank.get(files.get(item), len(rank)))
    for item, file in files.items():
        if file.startswith(SLOW) or SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")


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


def pytest_addoption(parser):
    parser.addoption("--parity", type=Path, help="write the results of the parity tests to this Markdown file")


@pytest.fixture(scope="session")
def figures(request):
    figures_of_run = Figures()
    yield figures_of_run
    if path := request.config.getoption("--parity"):
        path.write_text(PARITY.format(table=figures_of_run.table()))


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
    """The demonstration model as a plan in a folder that all workers share. Tests must not change it."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "demo-plan"
    build(BuildSpec(model="demo", output=folder))  # waits for another worker, and keeps what it built
    return folder


@pytest.fixture
def fake():
    """A pipeline with the fake backend: everything but the networks is real."""
    return calotype.load("demo", backend="fake")


@pytest.fixture
def model_copy(demo_folder, tmp_path) -> Path:
    """A copy of the demonstration model that a test may damage."""
    return Path(shutil.copytree(demo_folder, tmp_path / "model"))
