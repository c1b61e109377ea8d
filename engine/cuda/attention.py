"""Attention with the fastest implementation for a shape: cuDNN's, flash, torch's memory-efficient one or our kernel.

Each shape and type is measured once on the current GPU, before a capture. Without a GPU, or during a capture, torch
chooses the implementation. Another process may choose another implementation, which rounds differently. Imports torch
and triton.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from triton.errors import TritonError
from triton.testing import do_bench

from calotype.kernels import attention as ours

Run = Callable[[], Tensor]
Key = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]

TORCH_BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
OWN = "triton"
_TRIAL_MS = 20  # how long each implementation is measured


def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Compute softmax(q k' scale) v.  # [B, H, P, D], [B, H, T, D] -> [B, H, P, D]"""
    return CHOICES.attend(q, k, v, scale)


class Choices:
    """The fastest implementation for each shape and type. Threads may share it.

    `seconds` measures a run. It returns None if the implementation does not support the shape or type.
    """

    def __init__(self, seconds: Callable[[Run], float | None]) -> None:
        self._seconds, self._lock = seconds, threading.Lock()
        self.fastest: dict[Key, str | None] = {}  # None: torch chooses

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Compute attention with the fastest implementation for these shapes."""
        runs = {name: partial(_by_torch, q, k, v, scale, backend) for name, backend in TORCH_BACKENDS.items()}
        if q.shape[3] <= ours.MAX_HEAD_WIDTH:
            runs[OWN] = partial(ours.attention, q, k, v, scale=scale)
        name = self._fastest((tuple(q.shape), tuple(k.shape), q.dtype), runs)
        return _by_torch(q, k, v, scale, None) if name is None else runs[name]()

    def _fastest(self, key: Key, runs: Mapping[str, Run]) -> str | None:
        with self._lock:
            if key not in self.fastest:
                if not _measurable():
                    return None
                times = {name: seconds for name, run in runs.items() if (seconds := self._seconds(run)) is not None}
                self.fastest[key] = min(times, key=lambda name: times[name]) if times else None
            return self.fastest[key]


def _by_torch(q: Tensor, k: Tensor, v: Tensor, scale: float, backend: SDPBackend | None) -> Tensor:
    if backend is None:
        return nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)
    with sdpa_kernel(backend):
        return nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)


def _measurable() -> bool:
    return torch.cuda.is_available() and not torch.cuda.is_current_stream_capturing()


def _on_gpu(run: Run) -> float | None:
    """Return the median seconds of a run; None if the kernel does not support this GPU, shape or type."""
    try:
        return float(do_bench(run, warmup=5, rep=_TRIAL_MS, return_mode="median")) / 1000
    except torch.OutOfMemoryError:  # says nothing about the kernel, so it must not be stored
        raise
    except (RuntimeError, TritonError):  # torch and triton raise these for unsupported kernels
        return None


CHOICES = Choices(_on_gpu)
