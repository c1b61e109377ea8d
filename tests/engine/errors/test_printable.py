"""Text from files reaches a terminal on one line, without control characters."""

import pytest

from calotype import errors
from calotype.errors.printable import printable
from calotype.report.report import ComponentReport, Report

HOSTILE = ["\x1b[2J", "\x9b31m", "a\nb", "a\rb", "\x07", "\x00", "\u202egnp.exe", "\u2028", "\u200b", "\udc80", "\x85"]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_control_characters_are_escaped(text):
    shown = printable(f"x{text}y")
    assert shown.isprintable()
    assert shown.startswith(("x", "x\\"))
    assert printable(shown) == shown
    shown.encode()


def test_other_text_is_unchanged():
    for text in ("", "a path/model (1).png", "モデル", "größe", "🎨", "back\\slash"):
        assert printable(text) == text


@pytest.mark.parametrize("name", errors.__all__)
def test_errors_are_one_safe_line(name):
    error = getattr(errors, name)("".join(HOSTILE))
    assert str(error).isprintable()
    assert f"{error}" == str(error)


def test_reports_are_safe():
    bad = "".join(HOSTILE)
    component = ComponentReport(name=bad, backend=bad, precision=bad, why=bad)
    report = Report(
        **dict.fromkeys(("model", "model_id", "sampler"), bad),
        **{"components": (component,), "steps": 1, "network_calls": 1, "seconds": {}},
        **{"loras": ((bad, 1.0),), "notes": (bad,)},
    )
    lines = str(report).split("\n")
    assert len(lines) == 6
    assert all(line.isprintable() for line in lines)
