"""Calls of accelerated pipelines, and the same calls in eager PyTorch."""

import torch

from calotype.drop_in.forward import eager_only
from calotype.drop_in.image_check import psnr_db
from tests.helpers.pipelines.tiny import inputs_of

MIN_DB = 60  # compiled and eager, both in float32, over two steps


def generate(pipe, *, seed=1, nets=1, **changes):
    """Return the images of a call for the class of the pipeline.  # float32 [N, H, W, 3]"""
    inputs = inputs_of(type(pipe), nets, **changes)
    return pipe(**inputs, generator=torch.Generator().manual_seed(seed), output_type="np").images


def against_eager(pipe, **changes):
    """Return the PSNR of a call against the same call in eager PyTorch, in dB."""
    result = generate(pipe, **changes)
    with eager_only():
        expected = generate(pipe, **changes)
    return psnr_db(result, expected)


def reasons(report) -> list[str]:
    """Return why calls ran in eager PyTorch."""
    return [reason for module in report.modules for reason in module.reasons]
