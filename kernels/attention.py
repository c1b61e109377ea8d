"""Attention in one pass over the keys, without the matrix of scores (Dao et al. 2022, arXiv 2205.14135).

    o = softmax(q k' scale) v        for each image and head

A program holds some rows of q and iterates over k and v, with each row's running maximum and sum. Both lengths may have
any value, for example many queries (pixels) and few keys (a text). `calotype.cuda.attention` compares its speed with
cuDNN's and flash attention, and selects the fastest for a shape.
"""

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from .launch import Launch, require, wide

MAX_HEAD_WIDTH = 128  # above it, rows of q and of the result no longer fit into registers
_QUERIES, _KEYS = 64, 64
_MIN_TILE = 16  # the smallest tile of the tensor cores


@triton.jit
def _attention(
    q, k, v, out, scale, heads, queries, keys,
    q_b, q_p, k_b, k_p, v_b, v_p, q_h: tl.constexpr, k_h: tl.constexpr, v_h: tl.constexpr,
    WIDTH: tl.constexpr, LANES: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    image, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    row = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    lane = tl.arange(0, LANES)
    wide = lane < WIDTH
    here = (row < queries)[:, None] & wide[None, :]
    rows = tl.load(q + image * q_b + head * q_h + row.to(tl.int64)[:, None] * q_p + lane[None, :], mask=here, other=0)
    row_max = tl.full([QUERIES], -float("inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    mixed = tl.zeros([QUERIES, LANES], tl.float32)
    for first in range(0, keys, KEYS):
        key = first + tl.arange(0, KEYS)
        there = (key < keys)[:, None] & wide[None, :]
        place = key.to(tl.int64)[:, None]
        ks = tl.load(k + image * k_b + head * k_h + place * k_p + lane[None, :], mask=there, other=0)  # [K, D]
        vs = tl.load(v + image * v_b + head * v_h + place * v_p + lane[None, :], mask=there, other=0)
        scores = tl.dot(rows, tl.trans(ks), input_precision="ieee") * (scale * 1.4426950408889634)
        scores = tl.where((key < keys)[None, :], scores, -float("inf"))
        now = tl.maximum(row_max, tl.max(scores, axis=1))
        shares = tl.exp2(scores - now[:, None])
        fade = tl.exp2(row_max - now)
        total = total * fade + tl.sum(shares, axis=1)
        mixed = mixed * fade[:, None]
        mixed = tl.dot(shares.to(vs.dtype), vs, mixed, input_precision="ieee")
        row_max = now
    y = mixed / total[:, None]
    place = ((image * queries + row.to(tl.int64)) * heads + head)[:, None] * WIDTH + lane[None, :]  # [B, P, H, D]
    tl.store(out + place, y.to(out.dtype.element_ty), mask=here)


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Compute o, with the heads of each query adjacent in memory.  # [B, H, P, D], [B, H, T, D] -> [B, H, P, D]

    Raises `ValueError` if the shapes or strides do not match.
    """
    return launch(q, k, v, scale=scale).run().transpose(1, 2)


def launch(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Launch:
    """Return the launch. Its arguments contain `out`, [B, P, H, D]."""
    batch, heads, queries, width = q.shape
    match = k.shape == v.shape and k.shape[:2] == q.shape[:2] and k.shape[3] == width and k.shape[2] > 0
    match = match and width <= MAX_HEAD_WIDTH
    require(match, f"q [B, H, P, D], k and v [B, H, T, D], D at most {MAX_HEAD_WIDTH}", [q, k, v])
    require(all(t.stride(3) == 1 for t in (q, k, v)), "heads that are contiguous in the last axis", [q, k, v])
    lanes = max(_MIN_TILE, triton.next_power_of_2(width))
    rows = min(_QUERIES, max(_MIN_TILE, triton.next_power_of_2(queries)))
    keys = _KEYS if lanes <= _KEYS else _KEYS // 2  # wide heads need fewer keys at once: registers are the limit
    tensors = {"q": q, "k": k, "v": v, "out": q.new_empty(batch, queries, heads, width)}
    sizes = {"heads": heads, "queries": queries, "keys": k.shape[2]}
    strides = {f"{n}_{axis}": tensors[n].stride(i) for n in "qkv" for i, axis in ((0, "b"), (2, "p"))}
    # A head of 40 numbers is no multiple of 16: only as a constant does the compiler know that rows begin at 16 bytes.
    between_heads = {f"{n}_h": tensors[n].stride(1) for n in "qkv"}
    return Launch(
        kernel=_attention,
        grid=(triton.cdiv(queries, rows), batch * heads),
        arguments={**tensors, "scale": scale, **sizes, **strides},
        constants={**between_heads, "WIDTH": width, "LANES": lanes, "QUERIES": rows, "KEYS": keys},
        warps=4,
    )


def reference(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Compute the same with torch in float32."""
    return functional.softmax(wide(q) @ wide(k).transpose(2, 3) * scale, dim=-1) @ wide(v)
