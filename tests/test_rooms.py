"""Which room may import which: benchmarks -> export -> engine -> kernels, and the public names."""

import ast
from pathlib import Path

import pytest

import calotype

ROOT = Path(__file__).parent.parent
ORDER = ("benchmarks", "export", "engine", "kernels")  # a room may import those after it
# The runtime turns a source into a plan through the exporter, and the command line has every room's commands.
EXCEPTIONS = {("engine/loading.py", "export"), ("engine/__main__.py", "benchmarks")}


def room_of(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] != "calotype":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ORDER else "engine"


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports across rooms are absolute"
            found |= {f"{node.module}.{a.name}" for a in node.names}
    return found


@pytest.mark.parametrize("room", ORDER)
def test_imports_run_one_way(room):
    wrong = {
        (str(path.relative_to(ROOT)), target)
        for path in (ROOT / room).rglob("*.py")
        for target in map(room_of, imports(path))
        if target is not None and ORDER.index(target) < ORDER.index(room)
    }
    assert wrong == (EXCEPTIONS if room == "engine" else set())


def test_kernels_know_torch_and_triton_alone():
    outside = {m.split(".")[0] for p in (ROOT / "kernels").rglob("*.py") for m in imports(p)} - {"__future__"}
    assert outside <= {"torch", "triton", "calotype", "dataclasses", "typing", "collections"}


def test_public_names():
    assert calotype.__all__ == [
        "BackendError",
        "BuildError",
        "CalotypeError",
        "Cancelled",
        "CheckError",
        "Clip",
        "Event",
        "InputError",
        "Pipeline",
        "Report",
        "Result",
        "SamplerError",
        "SourceError",
        "__version__",
        "clip_score",
        "errors",
        "load",
        "preprocess",
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
