"""Whole pictures on an NVIDIA GPU: a job in, bytes out, one graph launch between.

Opens a plan's networks from their folders, puts our kernels in, and keeps graphs of `whole` by size, batch and number
of calls. What cannot be one graph is refused with its reason, and is for the pipeline's loop to do: ControlNets, and
schedulers that are no matrix. Not yet behind `calotype.load`, and not yet run on a GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calotype.backends.device import Gpu
from calotype.conditioning import tokenizers_of
from calotype.errors import BackendError, NotFiniteError
from calotype.fused import fuse
from calotype.graphs import Graphs, Recorder
from calotype.modules import load_module
from calotype.plan import Plan
from calotype.request import Job
from calotype.sampler import SamplerMatrix
from calotype.sampler_cache import sampler_for
from calotype.whole import WholePicture, inputs_of

_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Painter:
    """Pictures of one plan. Threads may share it: one at a time is painted."""

    def __init__(
        self, plan: Plan, gpu: Gpu, recorder: Recorder, *, precision: str | Mapping[str, str], limit_bytes: int
    ) -> None:
        """`precision` is fp32, fp16 or bf16, for all networks or by name; `limit_bytes` is what graphs may hold.

        Raises `BackendError` for a plan with ControlNets, without folders of weights, or for another precision.
        """
        names = (*plan.tokenizers, "unet", "vae_decoder")
        if not plan.tokenizers or not set(names) <= set(plan.components):
            raise BackendError("a whole picture is one graph for models with text and an autoencoder alone.")
        kinds = dict.fromkeys(names, precision) if isinstance(precision, str) else dict(precision)
        self._plan, self._gpu = plan, gpu
        self._whole = gpu.hold(WholePicture(plan, {name: _opened(plan, name, kinds.get(name)) for name in names}))
        self._tokenizers = tokenizers_of(plan)
        self._graphs = Graphs(self._whole, recorder, limit_bytes=limit_bytes)
        self._lock = threading.Lock()

    def paint(self, job: Job) -> NDArray[np.uint8]:
        """The job's pictures.  # [B, H, W, 3]

        Raises `BackendError` where the scheduler is no matrix or the device is full, `NotFiniteError` where numbers
        are not finite.
        """
        _, matrix = sampler_for(job.scheduler, self._plan.scheduler, job.steps, self._plan.samplers)
        if not isinstance(matrix, SamplerMatrix):
            raise BackendError(f"{matrix.name} is no sampler matrix ({matrix.reason}): no graph can hold its steps.")
        arrays = inputs_of(self._plan, self._tokenizers, matrix, job)
        with self._lock, self._gpu.side_stream(), torch.inference_mode():
            made = self._graphs({name: self._gpu.put(array) for name, array in arrays.items()})
            pixels, finite = self._gpu.fetch(made["pixels"]), self._gpu.fetch(made["finite"])
        if not finite.all():
            raise NotFiniteError("the picture's numbers are not finite: take bf16, or fp32 for the vae_decoder.")
        return pixels


def _opened(plan: Plan, name: str, precision: str | None) -> Any:
    """The network with our kernels in it, in the precision."""
    if precision not in _TYPES:
        raise BackendError(f"the {name} can be painted with in {', '.join(_TYPES)}, and {precision} was asked for.")
    artefact = plan.components[name].artefact("diffusers")
    if artefact is None:
        raise BackendError(f"the plan holds no weights of the {name} in diffusers' layout; load the model itself.")
    module = load_module(name, artefact.path)
    fuse(module)
    return module.to(_TYPES[precision])
