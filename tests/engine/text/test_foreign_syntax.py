"""Notes for other programs' prompt syntax: one for each kind, and none for plain English."""

import pytest
from typer.testing import CliRunner

from calotype.cli import app
from calotype.text.foreign_syntax import syntax_notes

SYNTAX = {
    "a <lora:style:0.8> ring": "lora=",
    "a <LORA:style:1> ring": "lora=",
    "a [red] ring": "word:0.8",
    "a [[red]] ring": "word:0.8",
    "a ((red)) ring": "word:1.2",
    "a (((red))) ring": "word:1.2",
    "[red|blue] ring": "all steps",
    "[red:blue:0.5] ring": "all steps",
    "[red:.5] ring": "all steps",
    "[red::5] ring": "all steps",
    "a ring BREAK a star": "BREAK",
    "a ring AND a star": "AND",
    "a {red|blue} ring": "list of prompts",
    "a __color__ ring": "list of prompts",
    "a __color/warm__ ring": "list of prompts",
}
PLAIN = [
    "",
    "a <cat-toy> on a <beach>",
    "rings and stars [1], [2], [...] and []",
    "A LARGE RED RING AND A STAR BREAK",
    "a (photo) of a (red:1.3) ring, ((red:1.2))",
    r"\[red\] \(\(red\)\) \{a|b\}",
    "at [16:9], f(x) || g(x), snake__case",
    "take a break and draw a sandbreak, a BREAKFAST",
    "<|endoftext|>",
]


@pytest.mark.parametrize("prompt", SYNTAX)
def test_unsupported_syntax_gets_a_note(prompt):
    (note,) = syntax_notes([prompt])
    assert SYNTAX[prompt] in note


@pytest.mark.parametrize("prompt", PLAIN)
def test_plain_text_gets_no_note(prompt):
    assert syntax_notes([prompt]) == ()


def test_one_note_for_each_kind_of_syntax(fake):
    prompts = ["a [red] ring", "a [blue] ring BREAK a [green] star"]
    report = fake(prompts, negative_prompt="<lora:x:1> [gray]", steps=1).report
    assert len(report.notes) == 3
    assert [sum(each in note for note in report.notes) for each in ("[red]", "BREAK", "<lora:x:1>")] == [1, 1, 1]


def test_the_command_line_prints_them(tmp_path):
    out = str(tmp_path / "x.png")
    done = CliRunner().invoke(app, ["generate", "a [red] ring", "--backend", "fake", "--steps", "1", "-o", out])
    assert done.exit_code == 0
    assert "[red]" in done.stderr
