"""The openvino backend: runs ONNX artifacts on OpenVINO's CPU device, in the artifact's float32, bfloat16 or int8."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..base import Array, Arrays, Backend, ReadyCall, Runner, Session, missing_packages
from .network import HINTS, Network, hardware, unsupported
from .session import OpenVinoSession
from .slots import run_together, width_of


class OpenVinoRunner(Network, Runner):
    """A network on OpenVINO."""

    backend = "openvino"

    def session(
        self, constants: Arrays, timesteps: NDArray[np.float32], *, guided: bool, cache_interval: int
    ) -> Session[Array]:
        """Return a session that computes once what stays the same, unless the graph cannot be partitioned."""
        if not self.floats:
            return super().session(constants, timesteps, guided=guided, cache_interval=cache_interval)
        return OpenVinoSession(self, constants, timesteps, guided=guided, cache_interval=cache_interval)

    @property
    def memory_bytes(self) -> int:
        """An estimate: the mapped file, and the compiled shapes."""
        return self.weights_bytes + self.cached.estimated_bytes()

    @property
    def width(self) -> int:
        """The number of streams; 1 for a large network."""
        return width_of(self)

    def run_together(self, calls: Sequence[ReadyCall]) -> list[dict[str, Array]]:
        """Return the outputs of each call: a stream for each where that is faster."""
        return run_together(self, calls)


BACKEND = Backend(
    name="openvino",
    form="onnx",
    precisions=tuple(HINTS),
    computes=("bf16", "fp32"),
    packages=("openvino",),
    unavailable=partial(missing_packages, "cpu", "openvino"),
    unsupported=unsupported,
    hardware=hardware,
    open=OpenVinoRunner,
)
