"""`(words:1.3)`: how strongly parts of a prompt count, as people write it.

Only brackets that end in a colon and a number are meant; all others are text, and so is what a backslash stands before.
Knows nothing of tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from calotype.errors import InputError

MOST = 10.0
_PARTS = re.compile(r"\\[()]|[()]|[^()\\]+|\\")
_NUMBER = re.compile(r":\s*(\d*\.?\d+)\s*$")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a prompt that counts `weight` times."""

    text: str
    weight: float


def pieces_of(prompt: str) -> tuple[Piece, ...]:
    """The prompt in pieces; nested weights multiply. Raises `InputError` for one that is no number from 0 to 10."""
    texts: list[str] = []
    weights: list[float] = []
    opened: list[int] = []
    for part in _PARTS.findall(prompt):
        text = part
        if part == "(":
            opened.append(len(texts))
        elif part == ")" and opened:
            start = opened.pop()
            if said := _NUMBER.search(texts[-1]):
                texts[start], texts[-1], text = "", texts[-1][: said.start()], ""
                weights[start:] = [w * _weight(said[1], prompt) for w in weights[start:]]
        elif part in (r"\(", r"\)"):
            text = part[1]
        texts.append(text)
        weights.append(1.0)
    return _joined(texts, weights)


def _weight(said: str, prompt: str) -> float:
    weight = float(said)
    if not weight <= MOST:
        raise InputError(
            f"a weight in a prompt is a number from 0 to {MOST:g}, as in (word:1.3); got {said} in {prompt!r:.80}."
        )
    return weight


def _joined(texts: list[str], weights: list[float]) -> tuple[Piece, ...]:
    """Neighbours of one weight together: a word is not torn where nothing is meant."""
    joined: list[Piece] = []
    for text, weight in zip(texts, weights, strict=True):
        if joined and (joined[-1].weight == weight or not text):
            joined[-1] = Piece(text=joined[-1].text + text, weight=joined[-1].weight)
        elif text or not joined:
            joined.append(Piece(text=text, weight=weight))
    return tuple(joined) or (Piece(text="", weight=1.0),)
