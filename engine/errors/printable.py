"""Escape text from strangers for a terminal or a log."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return the text on one line, with control characters, escape sequences and bidirectional overrides escaped.

    "\\x1b" becomes the four visible characters of its escape. Escaping the result again changes nothing.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
