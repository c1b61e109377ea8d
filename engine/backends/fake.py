"""The fake backend: outputs of the right shapes without weights or a network, for tests of everything around it.

Each output is a smooth function of the means of the inputs, computed for each image separately. So tests notice a wrong
order, a wrong seed, or one image of a batch that changes another.
"""

from __future__ import annotations

import numpy as np

from ..plan.bindings import check_arrays
from ..plan.plan import PlannedComponent
from ..plan.profile import Profile
from .base import Array, Arrays, Backend, Runner


class FakeRunner(Runner):
    """A runner without a network. `calls` counts its runs."""

    backend = "fake"

    def __init__(self, component: PlannedComponent, precision: str) -> None:
        self._component = component
        self.precision = precision
        self.calls = 0

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        """Return all outputs by name, computed from the dimensions and the inputs' means."""
        self.calls += 1
        sizes = check_arrays(self._component.name, self._component.inputs, inputs)
        for pixels, latents in (("height", "latent_height"), ("width", "latent_width")):
            if latents in sizes:
                sizes.setdefault(pixels, sizes[latents] * Profile.factor)
            elif pixels in sizes:
                sizes.setdefault(latents, sizes[pixels] // Profile.factor)
                for larger in (1, 2, 3, 4, 8):  # an upscaler's outputs
                    sizes[f"{pixels}_times_{larger}"] = sizes[pixels] * larger
            for smaller in (2, 4, 8) if latents in sizes else ():  # levels of a U-Net
                sizes.setdefault(f"{latents}_{smaller}", sizes[latents] // smaller)
        mean = np.sum([_mean(a) for a in inputs.values()], axis=0)  # [B]
        outputs = {}
        for binding in self._component.outputs:
            shape = binding.shape(sizes)
            wave = np.sin(np.arange(np.prod(shape[1:])))[None] * 0.5 + np.tanh(mean)[:, None]
            outputs[binding.name] = wave.reshape(shape).astype(binding.dtype)
        return outputs


def _mean(array: Array) -> Array:
    """Return the mean of each image's values, scaled to the order of 1 for token ids too.  # [B, ...] -> [B]"""
    scale = 1000 if array.dtype.kind == "i" else 1
    means: Array = array.reshape(len(array), -1).mean(axis=1, dtype=np.float64) / scale
    return means


BACKEND = Backend(
    name="fake",
    form="diffusers",
    precisions=("fp32", "bf16", "fp16", "int8"),
    computes=("fp32", "bf16", "fp16"),
    unavailable=lambda: None,
    open=lambda component, artifact: FakeRunner(component, artifact.precision),
)
