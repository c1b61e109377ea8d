"""Attention against torch's in the same type."""

import pytest
import torch

from calotype.kernels.attention import WIDEST, attention, reference

# [B, H, P, D], T, why
SHAPES = [
    ((1, 1, 1, 8), 1, "one query and one key, in tiles that are nearly empty"),
    ((2, 2, 35, 40), 77, "SD 1.5's forty numbers a head, a text of 77, no whole tile of either"),
    ((1, 2, 70, 64), 70, "SDXL's heads, two tiles of queries"),
]


@pytest.mark.parametrize(("shape", "keys", "why"), SHAPES, ids=[s[-1] for s in SHAPES])
def test_it_is_torchs(shape, keys, why, dtype, randn, widened, no_worse_than_torch):
    batch, heads, _, width = shape
    q = randn(*shape, dtype=dtype) * 3  # some queries look at one key alone
    k, v = (randn(batch, heads, keys, width, dtype=dtype) for _ in "kv")
    scale = width**-0.5
    got = attention(q, k, v, scale=scale)
    by_torch = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)
    half_shares = 4 if dtype != torch.float32 else 1  # shares are rounded before the second product, as flash's are
    wanted = reference(*widened(q, k, v), scale=scale)
    apart = float((by_torch.double() - wanted).norm() / wanted.double().norm())
    least = half_shares * torch.finfo(dtype).eps
    assert float((got.double() - wanted).norm() / wanted.double().norm()) <= max(2 * apart, least)


def test_heads_that_lie_between_others_are_read_by_their_strides(randn):
    packed = randn(1, 20, 3 * 2 * 16)
    q, k, v = (p.view(1, 20, 2, 16).transpose(1, 2) for p in packed.chunk(3, dim=-1))
    got = attention(q, k, v, scale=0.25)
    torch.testing.assert_close(got, reference(q, k, v, scale=0.25), rtol=1e-5, atol=1e-5)
    assert got.transpose(1, 2).is_contiguous()  # as the projection after it wants it


def test_what_does_not_fit_is_refused(randn):
    with pytest.raises(ValueError, match=f"D at most {WIDEST}"):
        attention(*(randn(1, 1, 4, WIDEST + 1) for _ in "qkv"), scale=1.0)
    with pytest.raises(ValueError, match="side by side"):
        attention(randn(1, 1, 8, 4).transpose(2, 3), randn(1, 1, 4, 8), randn(1, 1, 4, 8), scale=1.0)
