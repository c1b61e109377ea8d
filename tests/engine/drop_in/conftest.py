"""A tiny pipeline of Stable Diffusion 1 for each test, whose traces all tests share."""

import diffusers
import pytest

import calotype
from tests.helpers.pipelines.tiny import tiny_pipeline


@pytest.fixture
def pipe(demo_folder, tmp_path):
    """A tiny pipeline that is not accelerated."""
    return tiny_pipeline(diffusers.StableDiffusionPipeline, demo_folder, tmp_path)


@pytest.fixture
def fast(pipe):
    """A tiny pipeline that is accelerated; no image was generated yet."""
    return calotype.accelerate(pipe, backend="openvino", verify=False)
