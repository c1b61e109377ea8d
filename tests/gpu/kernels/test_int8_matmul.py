"""The int8 product against whole numbers, and the kernels that end in eight bits against their references."""

import pytest
import torch

from calotype.kernels.int8_matmul import Weights, int8_matmul, reference

# [M, K], [N, K], why
SHAPES = [
    ((1, 1), (1, 1), "one number, in tiles that are nearly empty"),
    ((17, 70), (33, 70), "no power of two, and a depth of one tile and a little"),
    ((130, 64), (140, 64), "tiles at every edge"),
]


def whole(randn, *shape: int) -> torch.Tensor:
    """Of all numbers that there are, the ends among them."""
    return (randn(*shape) * 60).round().clamp(-128, 127).to(torch.int8)


@pytest.mark.parametrize(("a", "b", "why"), SHAPES, ids=[s[-1] for s in SHAPES])
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "with a bias"])
def test_it_is_the_product_of_whole_numbers(a, b, why, biased, dtype, randn):
    left, right = whole(randn, *a), whole(randn, *b)
    bias = randn(b[0], dtype=dtype) if biased else None
    weights = Weights(values=right, scale=randn(b[0]).abs() / 127, bias=bias)
    scale = torch.full((1,), 0.03, device=left.device)
    got, wanted = int8_matmul(left, scale, weights, dtype=dtype), reference(left, scale, weights)
    assert got.dtype == dtype
    torch.testing.assert_close(got, wanted.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_what_does_not_fit_is_refused(randn):
    a, scale = whole(randn, 4, 8), torch.ones(1)
    with pytest.raises(ValueError, match=r"int8 \[M, K\] and \[N, K\]"):
        int8_matmul(a, scale, Weights(values=whole(randn, 4, 9), scale=torch.ones(4)))
    with pytest.raises(ValueError, match="one for each of N"):
        int8_matmul(a, scale, Weights(values=whole(randn, 4, 8), scale=torch.ones(5)))
