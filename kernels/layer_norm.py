"""Layer normalization over the last axis, with the residual before it (Ba, Kiros and Hinton 2016, arXiv 1607.06450).

    s = x + residual
    y = (s - mean(s)) / sqrt(var(s) + eps) * weight + bias

A program holds whole rows: the variance is about the mean, from registers, and memory is read once.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from .launch import Launch, blocks, power_of_two, require, wide
from .quantize import Scale, empty_for, stored

_TILE = 4096  # numbers that a program holds
_WIDEST = 16384  # a row that still fits into registers


@triton.jit
def _layer_norm(
    x, residual, weight, bias, out, total, quantized, rows, eps,
    C: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    lane = tl.arange(0, LANES)
    wide = lane < C
    there = (row < rows)[:, None] & wide[None, :]
    place = row.to(tl.int64)[:, None] * C + lane[None, :]  # [ROWS, LANES]
    s = tl.load(x + place, mask=there, other=0).to(tl.float32)
    if residual is not None:
        s += tl.load(residual + place, mask=there, other=0).to(tl.float32)
        tl.store(total + place, s.to(total.dtype.element_ty), mask=there)
    off = tl.where(there, s - (tl.sum(s, axis=1) / C)[:, None], 0)
    scale = 1 / tl.sqrt(tl.sum(off * off, axis=1) / C + eps)
    w = tl.load(weight + lane, mask=wide, other=0).to(tl.float32)
    b = tl.load(bias + lane, mask=wide, other=0).to(tl.float32)
    y = off * scale[:, None] * w[None, :] + b[None, :]
    tl.store(out + place, stored(y, quantized, out.dtype.element_ty), mask=there)


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    quantized: Scale | None = None,
) -> tuple[Tensor, Tensor | None]:
    """y, and s where there is a residual (the next one needs it).  # [..., C], [C], [C] -> [..., C]

    y is in eight bits where a scale is given. Raises `ValueError` for tensors that do not fit.
    """
    (launch,) = launches(x, weight, bias, eps=eps, residual=residual, quantized=quantized)
    launch()
    out, total = launch.arguments["out"], launch.arguments["total"]
    assert isinstance(out, Tensor)
    assert total is None or isinstance(total, Tensor)
    return out, total


def launches(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    quantized: Scale | None = None,
) -> Sequence[Launch]:
    """The launch; its arguments have `out` and `total`."""
    given = [x, weight, bias, residual]
    whole = all(t is None or (t.shape == x.shape and t.is_contiguous()) for t in (x, residual))
    require(whole, "x and residual of one shape, contiguous", given)
    require(weight.shape == bias.shape == x.shape[-1:], "a weight and a bias for each channel", given)
    width = x.shape[-1]
    require(width <= _WIDEST, f"rows of at most {_WIDEST}", given)
    lanes = power_of_two(width)
    rows = max(1, min(_TILE // lanes, 16))
    count = x.numel() // width
    return [
        Launch(
            kernel=_layer_norm,
            grid=(blocks(count, rows),),
            arguments={
                **{"x": x, "residual": residual, "weight": weight, "bias": bias},
                **{"out": empty_for(x, quantized), "total": None if residual is None else torch.empty_like(x)},
                **{"quantized": None if quantized is None else quantized.scale, "rows": count, "eps": eps},
            },
            constants={"C": width, "LANES": lanes, "ROWS": rows},
            warps=4 if lanes <= _TILE else 16,
        )
    ]


def reference(
    x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5, residual: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The same in float32, by torch."""
    s = wide(x) if residual is None else wide(x) + wide(residual)
    y = functional.layer_norm(s, s.shape[-1:], wide(weight), wide(bias), eps)
    return y, None if residual is None else s
