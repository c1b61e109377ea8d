"""Fixtures of the microbenchmarks. Run them with: pytest benchmarks --benchmark-only"""

import sys
from pathlib import Path

# The folder `kernels` of the repository would shadow Hugging Face's package of that name.
ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]

import numpy as np  # noqa: E402
import pytest  # noqa: E402

import calotype  # noqa: E402
from calotype.plan.bindings import random_inputs  # noqa: E402


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


@pytest.fixture(scope="session")
def inputs(pipe) -> dict:
    """Inputs of each component for one guided image of 128 pixels, by the component's name."""
    profile = pipe.plan.profile
    inputs_by_component = {}
    for name, component in pipe.plan.components.items():
        sizes = profile.sizes(batch=2 if name == "unet" else 1, height=128, width=128)
        inputs_by_component[name] = random_inputs(
            component.inputs, {b.name: b.shape(sizes) for b in component.inputs}, ids=100
        )
        if "timestep" in inputs_by_component[name]:
            inputs_by_component[name]["timestep"] = np.full(2, 500, np.float32)
    return inputs_by_component
