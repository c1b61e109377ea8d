"""Product of two int8 matrices with scales and bias, for quantized networks (Jacob et al. 2018).

    y[m, n] = (sum_k a[m, k] b[n, k]) a_scale b_scale[n] + bias[n]

Sums are integers, and exact. torch's product (`torch._int_mm`) has no scales and bias: a second kernel must read its
int32 result. Activations have one scale, weights one for each row. The `cuda` backend has no quantized network yet:
only the tests call this kernel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, blocks, power_of_two, require

_ROWS, _COLUMNS, _DEPTH = 128, 128, 64  # of a program's tile
_BAND = 8  # adjacent rows of tiles: they read the same part of b from the cache
_MIN_TILE = 16  # the smallest tile of the tensor cores


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A linear layer in int8."""

    values: Tensor  # int8 [N, K]
    scale: Tensor  # float32 [N]
    bias: Tensor | None = None  # [N]


@triton.jit
def _int8_matmul(
    a, b, a_scale, b_scale, bias, out, rows, columns, depth,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    down, across = tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS)
    tile = tl.program_id(0)
    band = tile // (BAND * across)
    height = tl.minimum(down - band * BAND, BAND)
    within = tile % (BAND * across)
    row = (band * BAND + within % height) * ROWS + tl.arange(0, ROWS)
    column = within // height * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, DEPTH)
    total = tl.zeros([ROWS, COLUMNS], tl.int32)
    for first in range(0, depth, DEPTH):
        there = k + first < depth
        left = tl.load(
            a + row.to(tl.int64)[:, None] * depth + (k + first)[None, :],
            mask=(row < rows)[:, None] & there[None, :], other=0,
        )  # fmt: skip
        right = tl.load(
            b + column.to(tl.int64)[None, :] * depth + (k + first)[:, None],
            mask=(column < columns)[None, :] & there[:, None], other=0,
        )  # fmt: skip
        total = tl.dot(left, right, total, out_dtype=tl.int32)
    scale = tl.load(b_scale + column, mask=column < columns, other=0) * tl.load(a_scale)
    y = total.to(tl.float32) * scale[None, :]
    if bias is not None:
        y += tl.load(bias + column, mask=column < columns, other=0).to(tl.float32)[None, :]
    place = out + row.to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(place, y.to(out.dtype.element_ty), mask=(row < rows)[:, None] & (column < columns)[None, :])


def int8_matmul(a: Tensor, a_scale: Tensor, weights: Weights, *, dtype: torch.dtype = torch.float16) -> Tensor:
    """Compute y in `dtype`.  # int8 [M, K], float32 [1] -> [M, N]

    Raises `ValueError` if the shapes or types do not match.
    """
    (launch,) = launches(a, a_scale, weights, dtype=dtype)
    launch()
    out = launch.arguments["out"]
    assert isinstance(out, Tensor)
    return out


def launches(a: Tensor, a_scale: Tensor, weights: Weights, *, dtype: torch.dtype = torch.float16) -> Sequence[Launch]:
    """Return the launch. Its arguments contain `out`."""
    b, bias = weights.values, weights.bias
    match = a.ndim == b.ndim == 2 and a.dtype == b.dtype == torch.int8 and a.shape[1] == b.shape[1]
    require(match and a.is_contiguous() and b.is_contiguous(), "int8 [M, K] and [N, K], contiguous", [a, b])
    match = a_scale.numel() == 1 and weights.scale.shape == b.shape[:1]
    require(match and (bias is None or bias.shape == b.shape[:1]), "a scale, and one for each of N", [a_scale, b, bias])
    rows, columns = len(a), len(b)
    tall, broad = (min(limit, max(_MIN_TILE, power_of_two(n))) for limit, n in ((_ROWS, rows), (_COLUMNS, columns)))
    return [
        Launch(
            kernel=_int8_matmul,
            grid=(blocks(rows, tall) * blocks(columns, broad),),
            arguments={
                **{"a": a, "b": b, "a_scale": a_scale, "b_scale": weights.scale, "bias": bias},
                **{"out": a.new_empty(rows, columns, dtype=dtype), "rows": rows, "columns": columns},
                "depth": a.shape[1],
            },
            constants={"ROWS": tall, "COLUMNS": broad, "DEPTH": _DEPTH, "BAND": _BAND},
            warps=8,
        )
    ]


def reference(a: Tensor, a_scale: Tensor, weights: Weights) -> Tensor:
    """Compute the same with torch: exact integers, then float64."""
    total = a.long() @ weights.values.long().T
    y = total.double() * (a_scale.double() * weights.scale.double())
    return y if weights.bias is None else y + weights.bias.double()
