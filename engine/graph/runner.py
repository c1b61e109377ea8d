"""Graph execution on an NVIDIA GPU: a request in, image bytes out, one graph launch.

Takes the networks of the runners on the device (`cuda`, `tensorrt`), and keeps graphs of `GraphPipeline` by size, batch
and number of calls. For a request that cannot run as one graph it returns the reason, and the loop runs it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..backends.base import DeviceNetwork, SupportsGraphs
from ..cuda.device import Gpu, run_or_device_full
from ..cuda.graphs import CudaGraphCache, CudaGraphCapturer, GraphCapturer
from ..errors import DeviceFullError, NotFiniteError, first_line
from ..plan.plan import Plan
from ..request.resolved import ResolvedRequest
from ..sampling.matrix import SamplerMatrix
from ..stages.denoise_inputs import DenoiseInputs
from ..stages.generation import Generation
from .inputs import arrays_of, graph_unsupported_reason, options_of

if TYPE_CHECKING:
    from ..backends import LoadedComponent

_MEMORY_SHARE = 2  # graphs may hold half of the device's memory


class GraphRunner:
    """CUDA-graph runner of one plan. Threads may share it: it runs one request at a time."""

    def __init__(
        self,
        plan: Plan,
        networks: Mapping[str, DeviceNetwork],
        gpu: Gpu,
        recorder: GraphCapturer,
        *,
        limit_bytes: int,
    ) -> None:
        """`networks` are the text encoders, the unet and the vae_decoder; graphs may hold `limit_bytes`."""
        from .pipeline import GraphPipeline

        self._gpu = gpu
        self._module = gpu.move_module(GraphPipeline(plan, networks))
        self._graphs = CudaGraphCache(self._module, recorder, limit_bytes=limit_bytes)
        self._lock = threading.Lock()

    def __call__(self, request: ResolvedRequest, matrix: SamplerMatrix, inputs: DenoiseInputs) -> NDArray[np.uint8]:
        """Return the pixels.  # [B, H, W, 3]

        Raises `DeviceFullError`, and `NotFiniteError` if a number is not finite.
        """
        import torch

        arrays, options = arrays_of(request, matrix, inputs), options_of(request)

        def launch() -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
            tensors = {name: self._gpu.to_device(array) for name, array in arrays.items()}
            outputs = self._graphs(tensors, options=options)
            return self._gpu.to_host(outputs["pixels"]), self._gpu.to_host(outputs["finite"])

        hint = "generate smaller images, or fewer at once"
        with self._lock, self._gpu.side_stream(), torch.inference_mode(), self._gpu.nvtx_range("image"):
            pixels, finite = run_or_device_full(launch, "a graph of this size", hint)
        if not finite.all():
            raise NotFiniteError("the image has numbers that are not finite")
        return pixels


class GraphPipelineManager:
    """Owner of a pipeline's `GraphRunner`, which the first request that can run as one graph creates."""

    def __init__(self, plan: Plan, opened: Callable[[str], LoadedComponent]) -> None:
        """`opened` returns a component by its name."""
        self._plan, self._opened = plan, opened
        self._lock = threading.Lock()
        self._current: tuple[tuple[Any, ...], GraphRunner] | None = None  # (its networks, the runner)

    @property
    def names(self) -> tuple[str, ...]:
        """The components that a graph contains."""
        names = (*self._plan.tokenizers, "unet", "vae_decoder")
        return tuple(name for name in names if name in self._plan.components)

    @property
    def on_device(self) -> bool:
        """Whether all of these components are on a GPU whose runner supports capture."""
        return all(isinstance(self._opened(name).runner, SupportsGraphs) for name in self.names)

    def __call__(self, call: Generation, inputs: DenoiseInputs) -> NDArray[np.uint8] | None:
        """Return the pixels, or None if the loop has to run the call. Note in `call` which it was, and why."""
        reason = graph_unsupported_reason(self._plan, call.request, call.sampler, inputs.tiling)
        if reason is None:
            assert isinstance(call.sampler, SamplerMatrix)
            try:
                with call.watch.stage("graph"):
                    pixels = self._runner()(call.request, call.sampler, inputs)
                call.notes.append("generated as one graph")
                return pixels
            except (DeviceFullError, NotFiniteError) as failed:  # the loop needs less memory, or raises the precision
                reason = first_line(failed).rstrip(".")
        call.notes.append(f"generated step by step: {reason}")
        return None

    def _runner(self) -> GraphRunner:
        """Return the runner of the current networks. A component runner that was replaced or refitted has a new one."""
        with self._lock:
            runners: Mapping[str, Any] = {name: self._opened(name).runner for name in self.names}
            networks = {name: runner.network for name, runner in runners.items()}
            if self._current is None or self._current[0] != tuple(networks.values()):
                self._current = tuple(networks.values()), self._new(networks)
            return self._current[1]

    def _new(self, networks: Mapping[str, DeviceNetwork]) -> GraphRunner:
        gpu = Gpu()
        limit_bytes = gpu.total_bytes() // _MEMORY_SHARE
        return GraphRunner(self._plan, networks, gpu, CudaGraphCapturer(), limit_bytes=limit_bytes)
