"""`(words:1.3)`: how strongly parts of a prompt count, as people write it.

Only brackets that end in a colon and a number are meant; all others are text, and so is what a backslash stands before.
Knows nothing of tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import InputError

MOST = 10.0
MOST_CHARACTERS = 100_000  # of one prompt: some forty times what the text encoder takes
_MOST_NESTED = 1000.0  # the product of nested weights; float32 states would overflow far above it
_PARTS = re.compile(r"\\[()]|[()]|[^()\\]+|\\")
_NUMBER = re.compile(r"\d*\.\d+|\d+")


@dataclass(frozen=True, kw_only=True)
class WeightedSpan:
    """A part of a prompt that counts `weight` times."""

    text: str
    weight: float


def parse_weighted_prompt(prompt: str) -> tuple[WeightedSpan, ...]:
    """Split the prompt into pieces; nested weights multiply. The time is linear in the prompt's length.

    Raises `InputError` for a prompt of more than 100,000 characters, and for a weight that is not from 0 to 10.
    """
    if len(prompt) > MOST_CHARACTERS:
        raise InputError(f"a prompt has at most {MOST_CHARACTERS:,} characters; got {len(prompt):,}. Shorten it.")
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
    """Multiply, for each of `count` texts, the weights of all spans that it lies in."""
    weights: list[float] = []
    around = [(count, 1.0)]  # the spans that are open here: where each ends, and the product up to it
    for i in range(count):
        while i >= around[-1][0] and len(around) > 1:
            around.pop()
        if i in spans:
            end, weight = spans[i]
            product = weight * around[-1][1]
            if product > _MOST_NESTED:
                raise InputError(
                    f"nested weights in a prompt multiply to at most {_MOST_NESTED:g}; got {product:g} in "
                    f"{prompt!r:.80}."
                )
            around.append((end, product))
        weights.append(around[-1][1])
    return weights


def _weight(said: str, prompt: str) -> float:
    weight = float(said)
    if not weight <= MOST:
        raise InputError(
            f"a weight in a prompt is a number from 0 to {MOST:g}, as in (word:1.3); got {said:.20} in {prompt!r:.80}."
        )
    return weight


def _joined(texts: Sequence[str], weights: Sequence[float]) -> tuple[WeightedSpan, ...]:
    """Neighbors of one weight together: a word is not torn where nothing is meant."""
    runs: list[tuple[float, list[str]]] = []
    for text, weight in zip(texts, weights, strict=True):
        if runs and (runs[-1][0] == weight or not text):
            runs[-1][1].append(text)
        else:
            runs.append((weight, [text]))
    return tuple(WeightedSpan(text="".join(run), weight=weight) for weight, run in runs) or (
        WeightedSpan(text="", weight=1.0),
    )
