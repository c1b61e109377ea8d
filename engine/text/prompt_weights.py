"""Prompt weights: parse `(words:1.3)` into spans of text with a weight.

Only brackets that end in a colon and a number are syntax. All others are text, and so is a bracket after a backslash.
This file does not know tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..errors import InputError

MAX_WEIGHT = 10.0
MAX_CHARACTERS = 100_000  # in one prompt: some forty times as many as the text encoder reads
_MAX_NESTED = 1000.0  # the product of nested weights; float32 states overflow far above it
_PARTS = re.compile(r"\\[()]|[()]|[^()\\]+|\\")
_NUMBER = re.compile(r"\d*\.\d+|\d+")


def parse_weighted_prompt(prompt: str) -> list[tuple[str, float]]:
    """Split the prompt into parts with their weights; nested weights multiply. The time is linear in its length.

    Raises `InputError` for more than 100,000 characters, and for a weight that is not from 0 to 10.
    """
    if len(prompt) > MAX_CHARACTERS:
        raise InputError(
            f"Invalid prompt: got {len(prompt):,} characters; expected at most {MAX_CHARACTERS:,}.", argument="prompt"
        )
    texts: list[str] = []
    spans: dict[int, tuple[int, float]] = {}  # index of an opening bracket -> index of its end, and its weight
    opened: list[int] = []
    for part in _PARTS.findall(prompt):
        text = part
        if part == "(":
            opened.append(len(texts))
        elif part == ")" and opened:
            start = opened.pop()
            words, colon, number = texts[-1].rpartition(":")
            if colon and _NUMBER.fullmatch(number.strip()):
                spans[start] = len(texts), _weight(number.strip(), prompt)
                texts[start], texts[-1], text = "", words, ""
        elif part in (r"\(", r"\)"):
            text = part[1]
        texts.append(text)
    return _joined(texts, _weights(len(texts), spans, prompt))


def _weights(count: int, spans: Mapping[int, tuple[int, float]], prompt: str) -> list[float]:
    """Return, for each of `count` texts, the product of the weights of all spans that contain it."""
    weights: list[float] = []
    around = [(count, 1.0)]  # the open spans: the end of each, and the product up to it
    for i in range(count):
        while i >= around[-1][0] and len(around) > 1:
            around.pop()
        if i in spans:
            end, weight = spans[i]
            product = weight * around[-1][1]
            if product > _MAX_NESTED:
                raise InputError(
                    f"Invalid prompt: got nested weights that multiply to {product:g} in {prompt!r:.80}; expected at "
                    f"most {_MAX_NESTED:g}.",
                    argument="prompt",
                    got=product,
                )
            around.append((end, product))
        weights.append(around[-1][1])
    return weights


def _weight(number: str, prompt: str) -> float:
    weight = float(number)
    if not weight <= MAX_WEIGHT:
        raise InputError(
            f"Invalid weight in a prompt: got {number:.20} in {prompt!r:.80}; expected a number from 0 to "
            f"{MAX_WEIGHT:g}, as in (word:1.3).",
            argument="prompt",
            got=number,
        )
    return weight


def _joined(texts: Sequence[str], weights: Sequence[float]) -> list[tuple[str, float]]:
    """Join neighbors of equal weight, so that brackets without a weight do not split a word."""
    runs: list[tuple[float, list[str]]] = []
    for text, weight in zip(texts, weights, strict=True):
        if runs and (runs[-1][0] == weight or not text):
            runs[-1][1].append(text)
        else:
            runs.append((weight, [text]))
    return [("".join(run), weight) for weight, run in runs] or [("", 1.0)]
