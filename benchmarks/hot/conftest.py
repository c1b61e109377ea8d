"""Fixtures of the microbenchmarks. Run them with: pytest benchmarks --benchmark-only"""

import sys
from pathlib import Path

# The folder `kernels` of the repository would shadow Hugging Face's package of that name.
ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]

import pytest  # noqa: E402

import calotype  # noqa: E402


@pytest.fixture(scope="session", params=["onnxruntime", "openvino", "eager"])
def pipe(request) -> calotype.Pipeline:
    """The demonstration model on each backend that runs here."""
    try:
        return calotype.load("demo", backend=request.param)
    except calotype.BackendError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def fake() -> calotype.Pipeline:
    """A pipeline without networks."""
    return calotype.load("demo", backend="fake")
