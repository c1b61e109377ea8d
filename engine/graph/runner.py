"""Whole pictures on an NVIDIA GPU: a job in, bytes out, one graph launch between.

Takes the networks of runners that are open on the device (`cuda`, `tensorrt`), and keeps graphs of `whole` by size,
batch and number of calls. What cannot be one graph is told with its reason, and is for the pipeline's loop to do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

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
    from .pipeline import OnDevice

_GRAPHS_SHARE = 2  # half of the device's memory may be graphs of whole pictures


class GraphRunner:
    """Pictures of one plan. Threads may share it: one at a time is painted."""

    def __init__(
        self,
        plan: Plan,
        tokenizers: Mapping[str, ClipTokenizer],
        networks: Mapping[str, OnDevice],
        gpu: Gpu,
        recorder: GraphCapturer,
        *,
        limit_bytes: int,
    ) -> None:
        """`networks` are the text encoders, the unet and the vae_decoder; graphs may hold `limit_bytes`."""
        from .pipeline import GraphPipeline

        self._plan, self._gpu, self._tokenizers = plan, gpu, tokenizers
        self._whole = gpu.move_module(GraphPipeline(plan, networks))
        self._graphs = CudaGraphCache(self._whole, recorder, limit_bytes=limit_bytes)
        self._lock = threading.Lock()

    def run(self, asked: GraphInputs) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
        """The pictures, and notes for the report.  # [B, H, W, 3]

        Raises `DeviceFullError`, and `NotFiniteError` where numbers are not finite.
        """
        import torch

        arrays, notes = inputs_of(self._plan, self._tokenizers, asked)

        def painted() -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
            made = self._graphs({name: self._gpu.to_device(array) for name, array in arrays.items()})
            return self._gpu.to_host(made["pixels"]), self._gpu.to_host(made["finite"])

        mend = "ask for smaller pictures, or fewer at once"
        with self._lock, self._gpu.side_stream(), torch.inference_mode(), self._gpu.nvtx_range("picture"):
            pixels, finite = run_or_device_full(painted, "a whole picture of this size", mend)
        if not finite.all():
            raise NotFiniteError("the picture's numbers are not finite")
        return pixels, notes


class GraphPipelineManager:
    """A pipeline's painter, made when a first job can be one graph; and why others are not painted so."""

    def __init__(
        self, plan: Plan, tokenizers: Mapping[str, ClipTokenizer], opened: Callable[[str], LoadedComponent]
    ) -> None:
        self._plan, self._tokenizers, self._opened = plan, tokenizers, opened
        self._lock = threading.Lock()
        self._made: tuple[tuple[Any, ...], GraphRunner] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The components that a whole picture is made of."""
        wanted = (*self._plan.tokenizers, "unet", "vae_decoder")
        return tuple(name for name in wanted if name in self._plan.components)

    @property
    def on_device(self) -> bool:
        """Can any picture be one graph: does every one of its networks lie on a GPU that captures?"""
        return all(hasattr(getattr(self._opened(name), "runner", None), "network") for name in self.names)

    def run(
        self, job: Job, sampler: Sampler, asked: Callable[[], GraphInputs], watch: Stopwatch, *, whole: bool
    ) -> tuple[NDArray[np.uint8] | None, tuple[str, ...]]:
        """The pictures and notes; or None, and the note that says why the loop has to make them.

        `asked` is called for a job that can be one graph. `whole`: the autoencoder takes all at once.
        """
        reason = graph_unsupported_reason(self._plan, job, sampler) if whole else "the autoencoder works in portions"
        if reason is None:
            try:
                given, painter = asked(), self._runner()
                with watch.stage("picture"):
                    pixels, notes = painter.run(given)
                return pixels, (*notes, "painted as one graph")
            except (DeviceFullError, NotFiniteError) as failed:  # the loop takes less room, and may raise the precision
                reason = first_line(failed).rstrip(".")
        return None, (f"painted step by step: {reason}",)

    def _runner(self) -> GraphRunner:
        """Made of the networks of now: a runner that was replaced, for its precision, or refitted, has another."""
        with self._lock:
            runners: Mapping[str, Any] = {name: self._opened(name).runner for name in self.names}
            networks = {name: runner.network for name, runner in runners.items()}
            if self._made is None or self._made[0] != tuple(networks.values()):
                self._made = tuple(networks.values()), self._new(networks)
            return self._made[1]

    def _new(self, networks: Mapping[str, OnDevice]) -> GraphRunner:
        gpu = Gpu()
        limit_bytes = gpu.total_bytes() // _GRAPHS_SHARE
        return GraphRunner(self._plan, self._tokenizers, networks, gpu, CudaGraphCapturer(), limit_bytes=limit_bytes)
