"""Layer normalization over the last axis, with the residual before it (Ba, Kiros and Hinton 2016, arXiv 1607.06450).

    s = x + residual + shift
    y = (s - mean(s)) / sqrt(var(s) + eps) * weight + bias

A program holds full rows in registers: it computes the variance about the mean, and reads memory once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from .launch import Launch, require, wide
from .quantize import result_type, stored

_TILE = 4096  # the numbers that a program holds
_MAX_WIDTH = 16384  # the longest row that fits into registers


@triton.jit
def _layer_norm(
    x, residual, shift, weight, bias, out, total, stored_bias, quantized, rows, eps,
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
    if shift is not None:
        s += tl.load(shift + lane, mask=wide, other=0).to(tl.float32)[None, :]
    if total is not None:
        kept = s
        if stored_bias is not None:
            kept = s + tl.load(stored_bias + lane, mask=wide, other=0).to(tl.float32)[None, :]
        tl.store(total + place, kept.to(total.dtype.element_ty), mask=there)
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
    shift: Tensor | None = None,
    stored_bias: Tensor | None = None,
    fp8_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return y; and s + `stored_bias` if there is a residual or such a bias.  # [..., C], [C], [C] -> [..., C]

    `shift` and `stored_bias` are [C]. y is in fp8 if there is a scale (see `quantize`).

    Raises `ValueError` if the shapes or the memory layouts do not match.
    """
    added = {"residual": residual, "shift": shift, "stored_bias": stored_bias}
    started = launch(x, weight, bias, eps=eps, fp8_scale=fp8_scale, **added)
    return started.run(), None if residual is None and stored_bias is None else started.tensor("total")


def launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    shift: Tensor | None = None,
    stored_bias: Tensor | None = None,
    fp8_scale: Tensor | None = None,
) -> Launch:
    """Return the launch. Its arguments contain `out` and `total`."""
    tensors = [x, weight, bias, residual, shift, stored_bias]
    match = all(t is None or (t.shape == x.shape and t.is_contiguous()) for t in (x, residual))
    require(match, "x and residual of one shape, contiguous", tensors)
    each = all(t is None or t.shape == x.shape[-1:] for t in (weight, bias, shift, stored_bias))
    require(each, "a weight and a bias for each channel", tensors)
    width = x.shape[-1]
    require(width <= _MAX_WIDTH, f"rows of at most {_MAX_WIDTH}", tensors)
    lanes = triton.next_power_of_2(width)
    rows, count = max(1, min(_TILE // lanes, 16)), x.numel() // width
    inputs = {"x": x, "residual": residual, "shift": shift, "weight": weight, "bias": bias, "quantized": fp8_scale}
    out = torch.empty_like(x, dtype=result_type(x, fp8_scale))
    total = None if residual is None and stored_bias is None else torch.empty_like(x)
    return Launch(
        kernel=_layer_norm,
        grid=(triton.cdiv(count, rows),),
        arguments={**inputs, "out": out, "total": total, "stored_bias": stored_bias, "rows": count, "eps": eps},
        constants={"C": width, "LANES": lanes, "ROWS": rows},
        warps=4 if lanes <= _TILE else 16,
    )


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    shift: Tensor | None = None,
    stored_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute the same with torch in float32."""
    s = wide(x) if residual is None else wide(x) + wide(residual)
    s = s if shift is None else s + wide(shift)
    y = functional.layer_norm(s, s.shape[-1:], wide(weight), wide(bias), eps)
    total = s if stored_bias is None else s + wide(stored_bias)
    return y, None if residual is None and stored_bias is None else total
