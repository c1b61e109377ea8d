"""Attention with the fastest implementation for a shape: cuDNN's, flash, torch's memory-efficient one or our kernel;
for wide heads, matrix products.

Each shape and type is measured once for a kind of GPU and a version of torch, before a capture, and the choice is
stored in the cache folder. An implementation whose result is far from the formula's in float32 is not used. Without a
GPU, or during a capture, torch chooses the implementation. Imports torch and triton.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
import triton
from torch import Tensor, nn
from triton.errors import TritonError

from calotype.kernels import attention as ours

from ..errors import SourceError
from ..files.json_file import read_json
from ..files.paths import home, write_atomic
from .capture import CAPTURES, graph_seconds

Run = Callable[[], Tensor]
Key = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]

OWN, PRODUCTS = "triton", "products"
_SCORES = 1 << 27  # numbers of the matrix of scores that are in memory at once
_ROWS = 128  # queries of each image and head whose result is compared
_LEAST = 1e-5  # relative error that is allowed in any type
_EPSILONS = 4


def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Compute softmax(q k' scale) v.  # [B, H, P, D], [B, H, T, D] -> [B, H, P, D]"""
    return CHOICES.attend(q, k, v, scale)


def _cudnn(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    out: Tensor = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, False, scale=scale)[0]
    return out


def _flash(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)[0]
    return out


def _efficient(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    out: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, False, scale=scale)[0]
    return out


def _products(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Compute two matrix products and the softmax of some rows at a time: for heads wider than other kernels take."""
    images, heads, queries, width = q.shape
    keys = k.shape[2]
    q, k, v = (t.reshape(images * heads, -1, width) for t in (q, k, v))
    out = q.new_empty(images, heads, queries, width)
    rows = max(1, _SCORES // (images * heads * keys))
    for first in range(0, queries, rows):
        part = q[:, first : first + rows]
        scores = q.new_empty(len(part), part.shape[1], keys)
        scores = torch.baddbmm(scores, part, k.transpose(1, 2), beta=0, alpha=scale)  # scaled before it is rounded
        out.view_as(q)[:, first : first + rows] = scores.softmax(dim=-1) @ v
    return out


# torch's own choice goes through a switch of the whole process, which would also steer the attention of other threads.
TORCH_KERNELS = {"cudnn": _cudnn, "flash": _flash, "efficient": _efficient}


class Choices:
    """The fastest implementation for each shape and type. Threads may share it.

    `seconds` measures a run. It returns None if the implementation does not support the shape or type. `store` is the
    file of stored choices on this machine, or None.
    """

    def __init__(self, seconds: Callable[[Run], float | None], store: Callable[[], Path | None] = lambda: None) -> None:
        self._seconds, self._store, self._lock = seconds, store, threading.Lock()
        self.fastest: dict[Key, str | None] = {}  # None: torch chooses
        self._stored: dict[str, str | None] | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Compute attention with the fastest implementation for these shapes."""
        runs = {name: partial(kernel, q, k, v, scale) for name, kernel in TORCH_KERNELS.items()}
        if q.shape[3] > ours.MAX_HEAD_WIDTH:
            runs[PRODUCTS] = partial(_products, q, k, v, scale)
        else:
            runs[OWN] = partial(ours.attention, q, k, v, scale=scale)
        key = (tuple(q.shape), tuple(k.shape), q.dtype)
        name = self._fastest(key, runs, partial(_is_right, q, k, v, scale))
        if name is None:
            return nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)
        return runs[name]()

    def _fastest(self, key: Key, runs: Mapping[str, Run], is_right: Callable[[Run], bool]) -> str | None:
        with self._lock:
            if key in self.fastest:
                return self.fastest[key]
        if not _measurable():
            return None
        with CAPTURES, self._lock:  # in this order, as a capture that calls `attend`
            if key not in self.fastest:
                stored, name = self._load(), repr(key)
                if name not in stored or stored[name] not in (None, *runs):
                    times = {each: self._measured(run, is_right) for each, run in runs.items()}
                    usable = {each: seconds for each, seconds in times.items() if seconds is not None}
                    stored[name] = min(usable, key=lambda each: usable[each]) if usable else None
                    self._save(stored)
                self.fastest[key] = stored[name]
            return self.fastest[key]

    def _measured(self, run: Run, is_right: Callable[[Run], bool]) -> float | None:
        """Return the seconds of a run; None if it is not supported, or wrong."""
        try:
            if not is_right(run):
                return None
        except torch.OutOfMemoryError:  # says nothing about the kernel, so it must not be stored
            raise
        except (RuntimeError, TritonError):  # torch and triton raise these for unsupported kernels
            return None
        return self._seconds(run)

    def _load(self) -> dict[str, str | None]:
        if self._stored is None:
            self._stored, path = {}, self._store()
            if path is not None:
                with suppress(SourceError):  # no file yet, or a damaged one: it is measured again
                    self._stored = dict(read_json(path, "it has the fastest attention for each shape"))
        return self._stored

    def _save(self, stored: Mapping[str, str | None]) -> None:
        path = self._store()
        if path is not None:
            with suppress(OSError):  # a folder that cannot be written to
                write_atomic(path, json.dumps(stored, indent=1, sort_keys=True).encode())


def _is_right(q: Tensor, k: Tensor, v: Tensor, scale: float, run: Run) -> bool:
    """Return whether a run is near the formula in float32, on some queries of every image and head."""
    rows = torch.linspace(0, q.shape[2] - 1, min(_ROWS, q.shape[2]), device=q.device).long()
    expected = ours.reference(q[:, :, rows], k, v, scale=scale)
    apart = (run()[:, :, rows].float() - expected).norm() / expected.norm().clamp(min=1e-30)
    return float(apart) <= max(_LEAST, _EPSILONS * torch.finfo(q.dtype).eps)


def _measurable() -> bool:
    return torch.cuda.is_available() and not torch.cuda.is_current_stream_capturing()


def _on_gpu(run: Run) -> float | None:
    """Return the seconds of a run; None if the kernel does not support this GPU, shape or type."""
    try:
        return graph_seconds(run)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TritonError):
        return None


def _store_of_gpu() -> Path | None:
    """Return the file for this kind of GPU and these libraries; None if there is no cache folder."""
    cudnn = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
    parts = (torch.cuda.get_device_name(), torch.__version__, cudnn, triton.__version__)
    try:
        return home() / "attention" / (re.sub(r"[^\w.]+", "-", "-".join(parts)) + ".json")
    except SourceError:
        return None


CHOICES = Choices(_on_gpu, _store_of_gpu)
