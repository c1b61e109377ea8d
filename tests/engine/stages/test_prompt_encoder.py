"""Prompts as inputs of the U-Net: which runs of the text encoders they need."""

from dataclasses import replace

import numpy as np
import pytest

from calotype.backends import choose
from calotype.pipeline import Pipeline
from calotype.request.prompts import tokenizers_of
from calotype.request.resolved import resolve
from calotype.stages.prompt_encoder import PromptEncoder

PROMPTS = ["a red circle", "a (green:1.3) star"]


@pytest.fixture
def zeros(fake):
    """A pipeline of a model that takes zeros for a missing negative prompt."""
    return Pipeline(replace(fake.plan, prompting=replace(fake.plan.prompting, zero_negative=True)), choose("fake"))


def encoded(pipe, **arguments):
    request = resolve(PROMPTS, {"steps": 2, **arguments}, pipe.plan, tokenizers_of(pipe.plan))
    return PromptEncoder(pipe.plan, pipe.component)(request)["encoder_hidden_states"]


def test_a_missing_negative_prompt_is_zeros_without_a_run(zeros):
    states = encoded(zeros)
    assert zeros.component("text_encoder").runner.calls == len(PROMPTS)
    assert states.dtype == np.float32
    np.testing.assert_array_equal(states[:2], 0)
    assert not np.signbit(states[:2]).any()
    np.testing.assert_array_equal(states[2:], encoded(zeros, guidance_scale=1.0))


@pytest.mark.parametrize(("negative", "runs"), [("", 3), (PROMPTS[0], 2), (["", "a blue ring"], 4)])
def test_a_text_runs_once(zeros, negative, runs):
    states = encoded(zeros, negative_prompt=negative)
    assert zeros.component("text_encoder").runner.calls == runs
    assert states[:2].any(axis=(1, 2)).all()
