"""Every name of TensorRT that the code uses exists in the 11.4 bindings. The test reads the names from the code."""

import ast
from pathlib import Path

import pytest

from tests.helpers import tensorrt_standin

ROOT = Path(__file__).parent.parent.parent
NAMES = frozenset((Path(__file__).parent / "names.txt").read_text().splitlines()[1:])
RUNNERS = ("runner", "library", "refit")
FILES = (
    "export/tensorrt/builder.py",
    *(f"engine/backends/tensorrt/{name}.py" for name in RUNNERS),
)
# Names of TensorRT-RTX only. The code uses them only with targets, which our options refuse for TensorRT.
OF_RTX = {"ComputeCapability", "set_compute_capability", "num_compute_capabilities"}
# The code's variable -> the kind of the library's object.
KINDS = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "error": "ParserError",
    "optimization": "IOptimizationProfile",
    "refitter": "Refitter",
    "reader": "OnnxParserRefitter",
    "runner.engine": "ICudaEngine",
    "_runtime": "Runtime",
    "engine": "ICudaEngine",
    "_context": "IExecutionContext",
}


def used_names(path: Path) -> set[str]:
    """Return the used names: `trt.A.B` as A.B, and members of the library's objects as Kind.member."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Attribute):
            continue
        dotted = ast.unparse(node).removeprefix("self.")
        owner, _, member = dotted.rpartition(".")
        if dotted.startswith(("trt.", "library.")):
            names.add(dotted.partition(".")[2].removesuffix(".__init__"))
        elif owner in KINDS:
            names.add(f"{KINDS[owner]}.{member}")
    return names - {"__name__"}


@pytest.mark.parametrize("file", FILES)
def test_used_names_are_those_of_the_bindings(file):
    unknown = {name for name in used_names(ROOT / file) if name not in NAMES}
    assert {name.rpartition(".")[2] for name in unknown} <= OF_RTX


def test_the_search_finds_names():
    used = set().union(*(used_names(ROOT / file) for file in FILES))
    for name in ("Builder", "IBuilderConfig.set_flag", "IExecutionContext.execute_async_v3", "TensorIOMode.INPUT"):
        assert name in used


def test_the_stand_in_has_only_names_of_the_bindings():
    kinds = [
        kind for kind in vars(tensorrt_standin).values() if isinstance(kind, type) and kind.__module__ == "tensorrt"
    ]
    defined = {f"{kind.__name__}.{name}" for kind in kinds for name in vars(kind) if not name.startswith("_")}
    assert defined
    assert defined <= NAMES


def test_names_in_tables_are_those_of_the_bindings():
    from calotype.backends.tensorrt.runner import _TYPES
    from calotype.export.tensorrt.options import HARDWARE

    names = {f"BuilderFlag.{n}" for n in ("REFIT", "WEIGHT_STREAMING", "VERSION_COMPATIBLE")}
    names |= {f"HardwareCompatibilityLevel.{n}" for n in HARDWARE.values()} | {f"DataType.{n}" for n in _TYPES}
    assert names <= NAMES
