"""Any text as a prompt gives an `InputError` or an image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import calotype
from calotype.errors import InputError
from calotype.text.foreign_syntax import syntax_notes
from calotype.text.prompt_weights import parse_weighted_prompt
from calotype.text.tokenizer import ClipTokenizer

bounded = settings(max_examples=120, deadline=None, derandomize=True, database=None)

# Arbitrary text, and syntax of Calotype and of other programs.
SYNTAX = [
    "(",
    ")",
    ":",
    ":1.3)",
    ":99)",
    ":.5)",
    ":1" + "0" * 400 + ")",
    "\\",
    "[a|b]",
    "[",
    "]",
    "{",
    "|",
    "}",
    "BREAK",
]
WORDS = [" ", "red ring", "<lora:x:1>", "<cat>", "__a__", "'s", "İ", "🎉", "\x00", "e\u0301", "<|endoftext|>", "\u202e"]
prompts = st.one_of(st.text(max_size=200), st.lists(st.sampled_from(SYNTAX + WORDS), max_size=40).map("".join))


@pytest.fixture(scope="module")
def tokenizer(demo_folder):
    return ClipTokenizer(demo_folder / "tokenizer", 77)


@pytest.fixture(scope="module")
def fake_pipe():
    return calotype.load("demo", backend="fake")


def spans_or_none(prompt):
    try:
        return parse_weighted_prompt(prompt)
    except InputError:
        return None


@bounded
@given(prompt=prompts)
def test_spans_have_weights_and_all_of_the_text(prompt):
    spans = spans_or_none(prompt)
    if spans is None:
        assert ")" in prompt
        return
    assert all(0 <= weight <= 1000 for _, weight in spans)
    text = "".join(text for text, _ in spans)
    if all(weight == 1 for _, weight in spans) and not any(n in prompt for n in (":1.3)", ":.5)", "\\")):
        assert text == prompt
    assert len(text) <= len(prompt)


@bounded
@given(prompt=st.text(st.characters(exclude_characters="()\\"), max_size=300))
def test_text_without_brackets_is_one_span(prompt):
    (span,) = parse_weighted_prompt(prompt)
    assert span == (prompt, 1)


@bounded
@given(prompt=prompts)
def test_tokens_are_in_the_vocabulary_and_weights_are_finite(tokenizer, prompt):
    if spans_or_none(prompt) is None:
        return
    tokens = tokenizer([prompt], max_chunks=2)
    assert tokens.ids.shape == tokens.weights.shape
    assert tokens.ids.shape[2] == 77
    assert 0 <= tokens.ids.min() <= tokens.ids.max() < 49408
    assert np.isfinite(tokens.weights).all()


@bounded
@given(prompt=prompts)
def test_one_note_for_each_kind_of_syntax(prompt):
    notes = syntax_notes([prompt, prompt])
    assert notes == syntax_notes([prompt])
    assert len(notes) <= 7


any_text = st.one_of(prompts, st.text(st.characters(), max_size=50))  # with lone surrogates


@settings(bounded, max_examples=60)
@given(prompt=any_text, negative=any_text)
def test_a_pipeline_gives_an_image_or_an_input_error(fake_pipe, prompt, negative):
    try:
        result = fake_pipe(prompt, negative_prompt=negative, steps=1, seed=1, width=64, height=64)
    except InputError:
        assert None in (spans_or_none(prompt), spans_or_none(negative))
        return
    assert result.images[0].size == (64, 64)
