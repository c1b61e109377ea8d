"""Layer normalization compared with torch's."""

import pytest
import torch

from calotype.kernels.layer_norm import layer_norm, reference
from tests.helpers.kernels.checks import assert_no_worse_than_torch, randn, widened

# [..., C], why
SHAPES = [
    ((1, 1), "one number, whose variance is zero"),
    ((2, 3, 40), "forty channels: no power of two, and rows that do not fill a block"),
    ((17, 320), "as wide as SD 1.5's first level, one row more than a block of rows"),
    ((3, 1280), "as wide as its last"),
    ((2, 5000), "wider than a tile: one row a program, more warps"),
]


@pytest.mark.parametrize(("shape", "why"), SHAPES, ids=[s[-1] for s in SHAPES])
@pytest.mark.parametrize("added", [False, True], ids=["plain", "with a residual"])
def test_it_equals_torch(shape, why, added, dtype):
    x, weight, bias = (randn(*s, dtype=dtype) for s in (shape, shape[-1:], shape[-1:]))
    residual = randn(*shape, dtype=dtype) if added else None
    got, total = layer_norm(x, weight, bias, residual=residual)
    wide, wide_weight, wide_bias, more = widened(dtype, x, weight, bias, residual)
    expected, expected_total = reference(wide, wide_weight, wide_bias, residual=more)
    summed = x if residual is None else x + residual
    assert_no_worse_than_torch(got, torch.nn.functional.layer_norm(summed, shape[-1:], weight, bias), expected)
    if added:
        assert_no_worse_than_torch(total, summed, expected_total)
    else:
        assert total is None


def test_mismatched_tensors_raise():
    with pytest.raises(ValueError, match="one shape"):
        layer_norm(randn(4, 6).T, randn(4), randn(4))
    with pytest.raises(ValueError, match="for each channel"):
        layer_norm(randn(4, 6), randn(5), randn(6))
