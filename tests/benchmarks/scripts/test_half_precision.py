"""The cost of half precision, measured by rounding: fp16 has more digits than bf16."""

from calotype.benchmarks.scripts.half_precision import HEADS, measure


def test_rounding_costs_more_in_bf16_than_in_fp16():
    rows = measure(("bf16", "fp16"), images=1, steps=2, size=32)
    bf16, fp16 = (row[HEADS[1]] for row in rows)
    assert 25 < bf16 < fp16 < 100
