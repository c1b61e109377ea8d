"""Every name of TensorRT that the code says is one of the 11.4 bindings', read from the code itself."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
NAMES = frozenset((Path(__file__).parent / "names.txt").read_text().splitlines()[1:])
RUNNERS = ("runner", "library", "refit")
FILES = (
    *("export/tensorrt/builder.py", "export/tensorrt/watch.py"),
    *(f"engine/backends/tensorrt/{name}.py" for name in RUNNERS),
)
# TensorRT-RTX's alone: the code comes to them only where targets are named, which TensorRT itself refuses.
OF_RTX = {"ComputeCapability", "set_compute_capability", "num_compute_capabilities"}
# Objects of the library by what the code calls them.
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
    "_engine": "ICudaEngine",
    "_context": "IExecutionContext",
}


def said(path: Path) -> set[str]:
    """`trt.A.B` as A and A.B, and what is asked of the library's objects as Kind.member."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Attribute):
            continue
        dotted = ast.unparse(node).removeprefix("self.")
        owner, _, member = dotted.rpartition(".")
        if dotted.startswith(("trt.", "_trt.")):
            found.add(dotted.partition("trt.")[2].removesuffix(".__init__"))
        elif owner in KINDS:
            found.add(f"{KINDS[owner]}.{member}")
    return found - {"__name__"}


@pytest.mark.parametrize("file", FILES)
def test_names_are_the_bindings(file):
    unknown = {name for name in said(ROOT / file) if name not in NAMES}
    assert {name.rpartition(".")[2] for name in unknown} <= OF_RTX


def test_it_looks_where_names_are():
    everything = set().union(*(said(ROOT / file) for file in FILES))
    for name in ("Builder", "IBuilderConfig.set_flag", "IExecutionContext.execute_async_v3", "TensorIOMode.INPUT"):
        assert name in everything


def test_the_stand_in_has_the_bindings_names_alone(standin):
    kinds = [kind for kind in vars(standin).values() if isinstance(kind, type) and kind.__module__ == "tensorrt"]
    own = {f"{kind.__name__}.{name}" for kind in kinds for name in vars(kind) if not name.startswith("_")}
    assert own
    assert own <= NAMES


def test_words_in_tables_are_the_bindings():
    from calotype.backends.tensorrt.runner import _TYPES
    from calotype.export.tensorrt.options import HARDWARE

    words = {f"BuilderFlag.{n}" for n in ("REFIT", "WEIGHT_STREAMING", "VERSION_COMPATIBLE")}
    words |= {f"HardwareCompatibilityLevel.{n}" for n in HARDWARE.values()} | {f"DataType.{n}" for n in _TYPES}
    assert words <= NAMES
