"""The fake backend: outputs of the right shapes without weights or a network, for tests of everything around it.

Each output is a smooth function of the means of the inputs, computed for each image separately. So tests notice a wrong
order, a wrong seed, or one image of a batch that changes another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..plan.bindings import check_arrays
from ..plan.profile import Profile

if TYPE_CHECKING:
    from ..plan.plan import Artifact, PlannedComponent
    from .base import Arrays

FORM = "diffusers"
PRECISIONS = ("fp32", "bf16", "fp16", "int8")


def unavailable() -> str | None:
    """Return None: the fake backend always runs."""
    return None


class FakeRunner:
    """A runner without a network. `calls` counts its runs."""

    backend = "fake"

    def __init__(self, component: PlannedComponent, precision: str) -> None:
        self._component = component
        self.precision = precision
        self.calls = 0

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Return all outputs by name, computed from the dimensions and the inputs' means."""
        self.calls += 1
        sizes = check_arrays(self._component.name, self._component.inputs, inputs)
        for pixels, latents in (("height", "latent_height"), ("width", "latent_width")):
            if latents in sizes:
                sizes.setdefault(pixels, sizes[latents] * Profile.factor)
                for smaller in (2, 4, 8):  # levels of a U-Net
                    sizes.setdefault(f"{latents}_{smaller}", sizes[latents] // smaller)
            elif pixels in sizes:
                sizes.setdefault(latents, sizes[pixels] // Profile.factor)
        mean = np.sum([_mean(a) for a in inputs.values()], axis=0)  # [B]
        outputs = {}
        for binding in self._component.outputs:
            shape = binding.shape(sizes)
            wave = np.sin(np.arange(np.prod(shape[1:])))[None] * 0.5 + np.tanh(mean)[:, None]
            outputs[binding.name] = wave.reshape(shape).astype(binding.dtype)
        return outputs


def _mean(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the mean of each image's values, scaled to the order of 1 for token ids too.  # [B, ...] -> [B]"""
    scale = 1000 if array.dtype.kind == "i" else 1
    means: np.ndarray[Any, Any] = array.reshape(len(array), -1).mean(axis=1, dtype=np.float64) / scale
    return means


def open_runner(component: PlannedComponent, artifact: Artifact) -> FakeRunner:
    """Open a fake runner. It uses nothing of the artifact except the name of its precision."""
    return FakeRunner(component, artifact.precision)
