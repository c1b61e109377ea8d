"""The int8 product compared with its reference."""

import pytest
import torch

from calotype.kernels.int8_matmul import Weights, int8_matmul, reference

# [M, K], [N, K], why
SHAPES = [
    ((1, 1), (1, 1), "one number, in nearly empty tiles"),
    ((17, 70), (33, 70), "no power of two, and a depth of one tile and a little"),
    ((130, 64), (140, 64), "tiles at every edge"),
]


def int8_values(randn, *shape: int) -> torch.Tensor:
    """Random values of the full range, including both ends."""
    return (randn(*shape) * 60).round().clamp(-128, 127).to(torch.int8)


@pytest.mark.parametrize(("a", "b", "why"), SHAPES, ids=[s[-1] for s in SHAPES])
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "with a bias"])
def test_it_equals_the_product_of_integers(a, b, why, biased, dtype, randn):
    left, right = int8_values(randn, *a), int8_values(randn, *b)
    bias = randn(b[0], dtype=dtype) if biased else None
    weights = Weights(values=right, scale=randn(b[0]).abs() / 127, bias=bias)
    scale = torch.full((1,), 0.03, device=left.device)
    got, expected = int8_matmul(left, scale, weights, dtype=dtype), reference(left, scale, weights)
    assert got.dtype == dtype
    torch.testing.assert_close(got, expected.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_mismatched_tensors_raise(randn):
    a, scale = int8_values(randn, 4, 8), torch.ones(1)
    with pytest.raises(ValueError, match=r"int8 \[M, K\] and \[N, K\]"):
        int8_matmul(a, scale, Weights(values=int8_values(randn, 4, 9), scale=torch.ones(4)))
    with pytest.raises(ValueError, match="one for each of N"):
        int8_matmul(a, scale, Weights(values=int8_values(randn, 4, 8), scale=torch.ones(5)))
