"""Which attention? cuDNN's, flash attention, torch's memory-efficient one or our own: what is fastest for a shape here.

Measured once for each shape and type, on the GPU that is here, before anything is captured; what nobody could measure
(no GPU, or a capture that is under way) is torch's own choice. Another process may find another one fastest, whose sums
are rounded otherwise. Imports torch and triton.
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

TORCHS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
OWN = "triton"
_LOOK_MS = 20  # for how long each is tried


def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """softmax(q k' scale) v.  # [B, H, P, D], [B, H, T, D] -> [B, H, P, D]"""
    return CHOICES.attend(q, k, v, scale)


class Choices:
    """What was found fastest. Threads may share it. `seconds` times a run, or says that it cannot be with None."""

    def __init__(self, seconds: Callable[[Run], float | None]) -> None:
        self._seconds, self._lock = seconds, threading.Lock()
        self.found: dict[Key, str | None] = {}  # None: torch's own choice

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """By what is fastest for these shapes."""
        runs = {name: partial(_by_torch, q, k, v, scale, backend) for name, backend in TORCHS.items()}
        if q.shape[3] <= ours.MAX_HEAD_WIDTH:
            runs[OWN] = partial(ours.attention, q, k, v, scale=scale)
        chosen = self._chosen((tuple(q.shape), tuple(k.shape), q.dtype), runs)
        return _by_torch(q, k, v, scale, None) if chosen is None else runs[chosen]()

    def _chosen(self, key: Key, runs: Mapping[str, Run]) -> str | None:
        with self._lock:
            if key not in self.found:
                if not _measurable():
                    return None
                took = {name: seconds for name, run in runs.items() if (seconds := self._seconds(run)) is not None}
                self.found[key] = min(took, key=lambda name: took[name]) if took else None
            return self.found[key]


def _by_torch(q: Tensor, k: Tensor, v: Tensor, scale: float, backend: SDPBackend | None) -> Tensor:
    if backend is None:
        return nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)
    with sdpa_kernel(backend):
        return nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)


def _measurable() -> bool:
    return torch.cuda.is_available() and not torch.cuda.is_current_stream_capturing()


def _on_gpu(run: Run) -> float | None:
    """Seconds of a run, the median of several; None for what this GPU, shape or type does not have."""
    try:
        return float(do_bench(run, warmup=5, rep=_LOOK_MS, return_mode="median")) / 1000
    except torch.OutOfMemoryError:  # which says nothing of the kernel, and is not to be remembered as if it did
        raise
    except (RuntimeError, TritonError):  # how torch and triton say that a kernel is not for these
        return None


CHOICES = Choices(_on_gpu)
