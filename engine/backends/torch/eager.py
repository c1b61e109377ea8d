"""The eager backend: the model's PyTorch modules in float32, the reference for all other backends."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ...errors import BackendError, SourceError
from ...system import forks, threads
from ..base import Array, Arrays, Backend, Runner, missing_packages

if TYPE_CHECKING:
    from ...plan.plan import Artifact, PlannedComponent
    from ...weights.delta import WeightDeltas

_FORKED = (
    "eager uses one thread because this process was forked after PyTorch was loaded; start it with spawn to use more"
)


class EagerRunner(Runner):
    """Runs a PyTorch module over numpy arrays on the CPU."""

    backend = "eager"
    precision = "fp32"

    def __init__(self, component: PlannedComponent, artifact: Artifact) -> None:
        import torch

        from .modules import load_module
        from .weights import ModuleWeights

        torch.set_num_threads(1 if forks.torch_single_threaded() else threads.available())
        try:
            self._module = load_module(component.name, artifact.path)
        except SourceError as broken:
            raise BackendError(str(broken), backend=self.backend, component=component.name) from None
        self._weights = ModuleWeights.of(self._module)
        self._names = [b.name for b in component.outputs]
        self.notes = (_FORKED,) if forks.torch_single_threaded() else ()

    @property
    def memory_bytes(self) -> int:
        """The size of its parameters and buffers."""
        tensors = [*self._module.parameters(), *self._module.buffers()]
        return sum(tensor.nbytes for tensor in tensors)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return each layer's weight shape."""
        return self._weights.shapes()

    def update_weights(self, deltas: WeightDeltas) -> None:
        """Change these weights in place, and restore all others."""
        self._weights.update_weights(deltas)

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        """Return all outputs by name."""
        import torch

        with torch.inference_mode():
            tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()}
            outputs = self._module(**tensors)
        return {name: out.numpy() for name, out in zip(self._names, outputs, strict=True)}


BACKEND = Backend(
    name="eager",
    form="diffusers",
    precisions=("fp32",),
    unavailable=partial(missing_packages, "build", "torch", "diffusers", "transformers"),
    open=EagerRunner,
)
