"""Graph execution on an NVIDIA GPU: a job in, image bytes out, one graph launch.

Takes the networks of the runners on the device (`cuda`, `tensorrt`), and keeps graphs of `GraphPipeline` by size, batch
and number of calls. For a job that cannot run as one graph it returns the reason, and the pipeline's loop runs the job.
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
from ..request.request import Job
from ..sampling.matrix import Sampler
from ..system.trace import Stopwatch
from ..text.tokenizer import ClipTokenizer
from .inputs import GraphInputs, graph_unsupported_reason, inputs_of

if TYPE_CHECKING:
    from ..backends import LoadedComponent

_MEMORY_SHARE = 2  # graphs may hold half of the device's memory


class GraphRunner:
    """CUDA-graph runner of one plan. Threads may share it: it runs one job at a time."""

    def __init__(
        self,
        plan: Plan,
        tokenizers: Mapping[str, ClipTokenizer],
        networks: Mapping[str, DeviceNetwork],
        gpu: Gpu,
        recorder: GraphCapturer,
        *,
        limit_bytes: int,
    ) -> None:
        """`networks` are the text encoders, the unet and the vae_decoder; graphs may hold `limit_bytes`."""
        from .pipeline import GraphPipeline

        self._plan, self._gpu, self._tokenizers = plan, gpu, tokenizers
        self._module = gpu.move_module(GraphPipeline(plan, networks))
        self._graphs = CudaGraphCache(self._module, recorder, limit_bytes=limit_bytes)
        self._lock = threading.Lock()

    def run(self, inputs: GraphInputs) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
        """Return the pixels and notes for the report.  # [B, H, W, 3]

        Raises `DeviceFullError`, and `NotFiniteError` if a number is not finite.
        """
        import torch

        arrays, notes = inputs_of(self._plan, self._tokenizers, inputs)

        def launch() -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
            outputs = self._graphs({name: self._gpu.to_device(array) for name, array in arrays.items()})
            return self._gpu.to_host(outputs["pixels"]), self._gpu.to_host(outputs["finite"])

        hint = "generate smaller images, or fewer at once"
        with self._lock, self._gpu.side_stream(), torch.inference_mode(), self._gpu.nvtx_range("image"):
            pixels, finite = run_or_device_full(launch, "a graph of this size", hint)
        if not finite.all():
            raise NotFiniteError("the image has numbers that are not finite")
        return pixels, notes


class GraphPipelineManager:
    """Owner of a pipeline's `GraphRunner`, which the first job that can run as one graph creates."""

    def __init__(
        self, plan: Plan, tokenizers: Mapping[str, ClipTokenizer], opened: Callable[[str], LoadedComponent]
    ) -> None:
        self._plan, self._tokenizers, self._opened = plan, tokenizers, opened
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

    def run(
        self, job: Job, sampler: Sampler, inputs: Callable[[], GraphInputs], watch: Stopwatch, *, untiled: bool
    ) -> tuple[NDArray[np.uint8] | None, tuple[str, ...]]:
        """Return the pixels and notes; or None, and a note with the reason why the loop has to run the job.

        `inputs` is called for a job that can run as one graph. `untiled`: the VAE takes the batch at once.
        """
        reason = graph_unsupported_reason(self._plan, job, sampler) if untiled else "the VAE works in slices or tiles"
        if reason is None:
            try:
                graph_inputs, runner = inputs(), self._runner()
                with watch.stage("graph"):
                    pixels, notes = runner.run(graph_inputs)
                return pixels, (*notes, "generated as one graph")
            except (
                DeviceFullError,
                NotFiniteError,
            ) as failed:  # the loop needs less memory, and may raise the precision
                reason = first_line(failed).rstrip(".")
        return None, (f"generated step by step: {reason}",)

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
        return GraphRunner(self._plan, self._tokenizers, networks, gpu, CudaGraphCapturer(), limit_bytes=limit_bytes)
