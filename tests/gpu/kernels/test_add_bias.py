"""Sums of an image, a residual and a bias compared with torch's."""

import pytest
import torch

from calotype.kernels.add_bias import add_bias, reference
from tests.helpers.kernels.checks import assert_no_worse_than_torch, randn, widened

# [B, C, H, W], why
SHAPES = [
    ((1, 1, 1, 1), "one number"),
    ((2, 40, 7, 5), "forty channels: blocks begin at any channel"),
    ((1, 64, 33, 2), "one block and a part of another"),
]


@pytest.mark.parametrize(("shape", "why"), SHAPES, ids=[s[-1] for s in SHAPES])
@pytest.mark.parametrize("added", ["residual", "bias", "residual bias"])
def test_it_equals_torch(shape, why, added, dtype):
    x = randn(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
    residual = randn(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last) if "residual" in added else None
    bias = randn(shape[1], dtype=dtype) if "bias" in added else None
    got = add_bias(x, residual=residual, bias=bias)
    wide, more, wide_bias = widened(dtype, x, residual, bias)
    by_torch = x if residual is None else x + residual
    by_torch = by_torch if bias is None else by_torch + bias[:, None, None]
    assert_no_worse_than_torch(got, by_torch, reference(wide, residual=more, bias=wide_bias))


def test_mismatched_tensors_raise():
    x = randn(2, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    for wrong, expected in (
        ({"residual": randn(2, 8, 3, 3)}, "channels last"),
        ({"residual": x[:1]}, "x's shape"),
        ({"bias": randn(7)}, "for each channel"),
    ):
        with pytest.raises(ValueError, match=expected):
            add_bias(x, **wrong)
