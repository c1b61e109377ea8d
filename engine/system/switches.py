"""Optimizations that the variable CALOTYPE_DISABLE can turn off, so that the gain of each can be measured."""

from __future__ import annotations

import difflib
import os

from ..errors import InputError

DISABLE_VARIABLE = "CALOTYPE_DISABLE"  # comma-separated names
OF_OPENVINO = ("upsampled_convolutions", "group_norms", "shared_guidance")
OF_CUDA = (
    "cudnn_benchmark",  # the search for the fastest convolution before a capture
    "deferred_sums",  # sums of a block, which the next norm computes
    "folded_biases",  # biases of convolutions in the time embedding, the next norm or the next sum
    "residual_products",  # matrix products that add to the residual in place
    "token_transformers",  # transformers that keep images channels last
    "fused_relu",  # convolutions of the tiny autoencoder with their ReLU and sum
)
OPTIMIZATIONS = (*OF_OPENVINO, *OF_CUDA)


def disabled_optimizations() -> frozenset[str]:
    """Return the optimizations that the environment variable turns off. Raise `InputError` for an unknown name."""
    names = frozenset(filter(None, map(str.strip, os.environ.get(DISABLE_VARIABLE, "").split(","))))
    for name in sorted(names.difference(OPTIMIZATIONS)):
        near = "".join(f" The nearest: {each}." for each in difflib.get_close_matches(name, OPTIMIZATIONS, 1))
        message = f"{DISABLE_VARIABLE} names {name!r:.80}; it may name {', '.join(OPTIMIZATIONS)}.{near}"
        raise InputError(message, argument=DISABLE_VARIABLE, got=name)
    return names
