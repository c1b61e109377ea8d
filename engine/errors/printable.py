"""Text of strangers for a terminal or a log: what could move the cursor, start a line or hide letters is escaped."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text on one line, with control characters, escape sequences, bidirectional overrides and the like escaped.

    "\\x1b[2J" comes out as the six visible characters of its escape. Escaping the result again changes nothing.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
