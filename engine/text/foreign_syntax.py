"""Detect prompt syntax of other programs that Calotype does not support, so that a report can name the alternative.

Covers AUTOMATIC1111's web UI, Dynamic Prompts and similar programs. This file changes no prompt: the text encoder reads
the syntax as text. Syntax that is also plain English ("[1]", "and", one pair of brackets) gets no note.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

# Each pattern ends at the next bracket of its kind, so that the time is linear.
_EXTRA = re.compile(r"<(?:lora|lyco|hypernet):[^<>]+>", re.IGNORECASE)
_SQUARE = re.compile(r"(?<!\\)\[([^\[\]]*)(?<!\\)\]")
_BRACES = re.compile(r"(?<!\\)\{[^{}|]*\|[^{}]*\}")
_DOUBLE = re.compile(r"(?<!\\)\(\(([^():\\]*)\)\)")
_WILDCARD = re.compile(r"(?<!\w)__(?:[^\W_]|[-/*.]|_(?!_))+__(?!\w)")
_KEYWORD = re.compile(r"(?<!\S)(?:BREAK|AND)(?!\S)")
_NUMBER = re.compile(r"\d*\.\d+|\d+")

_INSTEAD = {
    "extra": "use lora= or lora_folder= of load, set_lora, --lora or --lora-folder",
    "less": "use (word:0.8) to weaken a word",
    "more": "use (word:1.2) to strengthen a word",
    "change": "leave it out: a prompt is the same at all steps",
    "choice": "give a list of prompts",
    "BREAK": "leave it out: a long prompt is cut into chunks of 75 tokens",
    "AND": "leave it out: an image has one prompt; weight its parts as in (word:1.2)",
}


def syntax_notes(prompts: Iterable[str]) -> tuple[str, ...]:
    """Return one note for each kind of syntax in the prompts, with its first example."""
    examples: dict[str, str] = {}
    for prompt in dict.fromkeys(prompts):
        for kind, example in _matches(prompt):
            examples.setdefault(kind, example)
    return tuple(
        f"{example!r:.60} has no special meaning in a prompt and was read as text; {_INSTEAD[kind]}"
        for kind, example in examples.items()
    )


def _matches(prompt: str) -> Iterator[tuple[str, str]]:
    """Yield pairs of a kind and an example."""
    for pattern, kind in ((_EXTRA, "extra"), (_BRACES, "choice"), (_WILDCARD, "choice")):
        yield from ((kind, match[0]) for match in pattern.finditer(prompt))
    yield from (("more", match[0]) for match in _DOUBLE.finditer(prompt) if any(map(str.isalpha, match[1])))
    for match in _SQUARE.finditer(prompt):
        if elsewhere := _kind_in_square(match[1]):
            yield elsewhere, match[0]
    if not prompt.isupper():  # in a prompt of capitals these are ordinary words
        yield from ((match[0], match[0]) for match in _KEYWORD.finditer(prompt))


def _kind_in_square(text: str) -> str | None:
    """Return the meaning of square brackets in other programs, or None for a footnote, an ellipsis or the like."""
    words, colon, last = text.rpartition(":")
    if colon and _NUMBER.fullmatch(last.strip()):
        return "change" if any(map(str.isalpha, words)) else None
    if any(map(str.isalpha, text)):
        return "change" if "|" in text else "less"
    return None
