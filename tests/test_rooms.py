"""The layout: which folder may import which, no cycles, the sizes of files and folders, and the public names."""

import ast
import inspect
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

import calotype
from tests.helpers.prompt_walk import walk_of

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "benchmarks": "calotype.benchmarks",
    "export": "calotype.export",
    "engine": "calotype",
    "kernels": "calotype.kernels",
}
# A folder may import the folders after it, and nothing before it. The first row of a root is what users import.
ORDER = (
    "benchmarks/load",
    *(
        "benchmarks",
        "benchmarks/serving",
        "benchmarks/scale",
        "benchmarks/scripts",
        "benchmarks/gpu_check",
        "benchmarks/op_trace",
        "benchmarks/report",
        "benchmarks/run",
        "benchmarks/suite",
    ),
    "benchmarks/measure",
    *("export/commands", "export", "export/builder", "export/fit", "export/quality", "export/precision"),
    *(
        "export/tensorrt",
        "export/onnx",
        "export/sources/control_lora",
        "export/sources/ip_adapter",
        "export/sources/motion_adapter",
        "export/sources/t2i_adapter",
        "export/sources",
        "export/steps",
        "export/store",
        "export/judge",
    ),
    *("engine/serve/ray", "engine/serve/command", "engine/serve/web", "engine/serve/page", "engine/serve/web/openai"),
    *("engine/serve/web/a1111", "engine/serve/web/routes"),
    *(
        "engine/serve/web/service",
        "engine/serve",
        "engine",
        "engine/drop_in",
        "engine/drop_in/memory",
        "engine/drop_in/reading",
        "engine/doctor",
        "engine/graph",
        "engine/report",
        "engine/stages",
        "engine/stages/style",
        "engine/lora",
        "engine/request",
        "engine/request/video",
        "engine/request/regions",
        "engine/request/arguments",
        "engine/request/image_prompts",
        "engine/upscaling",
    ),
    *("engine/backends/openvino", "engine/backends/tensorrt", "engine/backends/onnxruntime", "engine/backends/torch"),
    *(
        "engine/backends",
        "engine/cuda/fused",
        "engine/cuda",
        "engine/sampling",
        "engine/plan",
        "engine/plan/controls",
        "engine/plan/image_prompts",
        "engine/plan/memory",
        "engine/plan/video",
        "engine/images",
        "engine/text",
    ),
    *("engine/weights", "engine/files", "engine/system", "engine/errors"),
    "kernels",
)
# Imports against the order. Each is inside a function, and runs only when its command or its model needs it.
EXCEPTIONS = {
    ("engine/loading.py", "export/__init__.py"),  # a source that is not a plan yet becomes one
    ("engine/upscaling/load.py", "export/__init__.py"),  # an upscaler's file is traced as a model is
    ("engine/drop_in/artifacts.py", "export/__init__.py"),  # a module in memory is traced as a model is
    ("engine/drop_in/paging.py", "export/__init__.py"),  # eager weights become a file of the store
    ("engine/fitting.py", "export/__init__.py"),  # `Pipeline.fit` is a step of the export
    ("engine/serve/command/serve.py", "engine/serve/ray/run.py"),  # `calotype serve --ray`
    ("engine/__main__.py", "benchmarks/cli.py"),  # the command line has the commands of every root folder
}
# Run by their paths: they belong to no package.
OUTSIDE = ("benchmarks/peers/", "benchmarks/hot/", "benchmarks/results/", "export/tools/")
MAX_LINES, MAX_FILES, MAX_FILES_IN_ENGINE = 350, 14, 10


@cache
def files() -> dict[str, ast.Module]:
    """Return the parsed files of the package by their paths."""
    paths = (path.relative_to(ROOT).as_posix() for root in PACKAGES for path in sorted((ROOT / root).rglob("*.py")))
    return {path: ast.parse((ROOT / path).read_text()) for path in paths if not path.startswith(OUTSIDE)}


def module_of(path: str) -> str:
    root, *parts = path.removesuffix(".py").split("/")
    return ".".join([PACKAGES[root], *(part for part in parts if part != "__init__")])


@cache
def modules() -> dict[str, str]:
    return {module_of(path): path for path in files()}


def imported(path: str) -> set[tuple[int, str]]:
    """Return the level and absolute name of every import of the package, in functions and TYPE_CHECKING too."""
    package = module_of(path).split(".")
    package = package if path.endswith("__init__.py") else package[:-1]
    names = set()
    for node in ast.walk(files()[path]):
        if isinstance(node, ast.Import):
            names |= {(0, alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            named = {f"{module}.{alias.name}" for alias in node.names}
            names |= {(node.level, name if name in modules() else module) for name in named}
    return {(level, name) for level, name in names if name.split(".")[0] == "calotype"}


@cache
def targets(path: str) -> frozenset[str]:
    """Return the files that a file imports."""
    return frozenset(modules()[name] for _, name in imported(path)) - {path}


def folder_of(path: str) -> str:
    return path.rpartition("/")[0]


def test_the_order_names_every_folder_once():
    assert sorted(ORDER) == sorted({folder_of(path) for path in files()})


def test_folders_import_one_way():
    against = {
        (path, target)
        for path in files()
        for target in targets(path)
        if ORDER.index(folder_of(target)) < ORDER.index(folder_of(path))
    }
    assert against == EXCEPTIONS


def test_there_are_no_import_cycles():
    rest = {path: {t for t in targets(path) if (path, t) not in EXCEPTIONS} for path in files()}
    while ends := [path for path, needs in rest.items() if not needs & rest.keys()]:
        for path in ends:
            del rest[path]
    assert not rest


@pytest.mark.parametrize("path", files())
def test_imports_are_relative_inside_a_root_folder_and_absolute_across(path):
    root = path.partition("/")[0]
    wrong = {name for level, name in imported(path) if (level > 0) != (modules()[name].partition("/")[0] == root)}
    assert not wrong


def test_kernels_import_torch_and_triton_and_nothing_else():
    kernels = [path for path in files() if path.startswith("kernels/")]
    nodes = [node for path in kernels for node in ast.walk(files()[path])]
    outside = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    outside |= {
        (node.module or "").split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom) and not node.level
    }
    assert outside <= {"torch", "triton", "dataclasses", "typing", "collections", "__future__"}


def test_files_and_folders_are_small():
    lines = {path: len((ROOT / path).read_text().splitlines()) for path in files()}
    assert {path: count for path, count in lines.items() if count > MAX_LINES} == {}
    tests = [path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")]
    counts = Counter(map(folder_of, [*files(), *tests]))
    assert {folder: count for folder, count in counts.items() if count > MAX_FILES} == {}
    assert counts["engine"] <= MAX_FILES_IN_ENGINE


def test_the_pipeline_is_small():
    assert len(inspect.getsource(calotype.Pipeline).splitlines()) <= 150


def test_a_prompt_runs_downhill():
    """From the arguments of a call to its image. See `tests/helpers/prompt_walk.py` for what counts."""
    walk = walk_of("fake")
    folders = [folder.removeprefix("engine").removeprefix("/") for folder in ORDER if folder.startswith("engine")]
    assert len(walk.moves_up(folders)) <= 8
    assert len(walk.types) <= 9


@pytest.mark.parametrize("root", [*PACKAGES, "tests"])
def test_every_root_folder_has_a_short_readme(root):
    assert len((ROOT / root / "README.md").read_text().splitlines()) <= 25


def test_public_names():
    assert calotype.__all__ == [
        "AccelerateReport",
        "BackendError",
        "BuildError",
        "CalotypeError",
        "Cancelled",
        "CheckError",
        "Clip",
        "DeadlineError",
        "DeviceFullError",
        "Event",
        "InputError",
        "ModuleReport",
        "NoAttributeError",
        "NotFiniteError",
        "Pipeline",
        "QueueFullError",
        "Report",
        "Result",
        "SamplerError",
        "SourceError",
        "Upscaler",
        "Video",
        "__version__",
        "accelerate",
        "accelerate_report",
        "accelerated",
        "clip_score",
        "errors",
        "load",
        "load_upscaler",
        "preprocess",
        "restore",
        "scheduler_names",
    ]
    for name in calotype.__all__:
        assert getattr(calotype, name) is not None
    with pytest.raises(AttributeError):
        _ = calotype.lod


def test_every_error_is_in_the_tree_and_its_drawing():
    drawn = calotype.errors.__doc__
    for name in calotype.errors.__all__:
        assert issubclass(getattr(calotype.errors, name), calotype.CalotypeError)
        assert name in drawn
