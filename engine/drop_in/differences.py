"""How far the output of an accelerated module may be from eager's, and how far it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

_FLOAT32, _FP16, _BF16, _INT8 = 1e-3, 3e-2, 1e-1, 3e-1  # ||compiled - eager|| / ||eager||: most of it is rounding
_OF_WEIGHTS = {torch.float16: _FP16, torch.bfloat16: _BF16}  # of eager, by the type of its weights
_OF_ARTIFACTS = {"fp32": _FLOAT32, "fp16": _FP16, "bf16": _BF16}


def limit_of(dtype: torch.dtype, precision: str) -> float:
    """Return the largest accepted difference.

    Args:
        dtype: the type of eager's weights.
        precision: that of the artifact.
    """
    return max(_OF_WEIGHTS.get(dtype, _FLOAT32), _OF_ARTIFACTS.get(precision.partition("+")[0], _INT8))


def difference(result: Any, expected: Any) -> float:
    """Return ||result - expected|| / ||expected|| over all tensors; infinite if they do not match or are not finite."""
    ours, theirs = list(_tensors_in(result)), list(_tensors_in(expected))
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        return float("inf")
    pairs = [(a.detach().double().cpu(), b.detach().double().cpu()) for a, b in zip(ours, theirs, strict=True)]
    apart = sum(float((a - b).square().sum()) for a, b in pairs)
    size = sum(float(b.square().sum()) for _, b in pairs)
    return float(np.sqrt(apart / max(size, 1e-24))) if np.isfinite(apart + size) else float("inf")


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors_in(each)
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors_in(each)
