"""Attention compared with torch's in the same type."""

import pytest
import torch

from calotype.kernels.attention import MAX_HEAD_WIDTH, attention, reference
from tests.helpers.kernels.checks import randn, widened

# [B, H, P, D], T, why
SHAPES = [
    ((1, 1, 1, 8), 1, "one query and one key, in nearly empty tiles"),
    ((2, 2, 35, 40), 77, "SD 1.5's forty numbers a head, a text of 77, no full tile of either"),
    ((1, 2, 70, 64), 70, "SDXL's heads, two tiles of queries"),
]


@pytest.mark.parametrize(("shape", "keys", "why"), SHAPES, ids=[s[-1] for s in SHAPES])
def test_it_equals_torch(shape, keys, why, dtype):
    batch, heads, _, width = shape
    q = randn(*shape, dtype=dtype) * 3  # some queries attend to only one key
    k, v = (randn(batch, heads, keys, width, dtype=dtype) for _ in "kv")
    scale = width**-0.5
    got = attention(q, k, v, scale=scale)
    by_torch = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)
    half_factor = (
        4 if dtype != torch.float32 else 1
    )  # probabilities are rounded before the second product, as in flash attention
    expected = reference(*widened(dtype, q, k, v), scale=scale)
    apart = float((by_torch.double() - expected).norm() / expected.double().norm())
    floor = half_factor * torch.finfo(dtype).eps
    assert float((got.double() - expected).norm() / expected.double().norm()) <= max(2 * apart, floor)


def test_interleaved_heads_are_read_by_their_strides():
    packed = randn(1, 20, 3 * 2 * 16)
    q, k, v = (p.view(1, 20, 2, 16).transpose(1, 2) for p in packed.chunk(3, dim=-1))
    got = attention(q, k, v, scale=0.25)
    torch.testing.assert_close(got, reference(q, k, v, scale=0.25), rtol=1e-5, atol=1e-5)
    assert got.transpose(1, 2).is_contiguous()  # as the next projection requires


def test_mismatched_tensors_raise():
    with pytest.raises(ValueError, match=f"at most {MAX_HEAD_WIDTH}"):
        attention(*(randn(1, 1, 4, MAX_HEAD_WIDTH + 1) for _ in "qkv"), scale=1.0)
    with pytest.raises(ValueError, match="contiguous"):
        attention(randn(1, 1, 8, 4).transpose(2, 3), randn(1, 1, 4, 8), randn(1, 1, 4, 8), scale=1.0)
