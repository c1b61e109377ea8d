"""The Python and the commands of README.md and docs/: the test runs the blocks, and the app parses the commands.

The blocks of a page share one process and one namespace, in an empty folder, as a reader would run them.
"""

import importlib.util
import json
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import typer

from calotype.benchmarks.cli import cli
from calotype.export.builder.spec import read_config, spec_from
from tests.helpers import fork_server

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
BLOCKS = {name: re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) for name, text in PAGES.items()}
# Its schedulers convert tensors in a way that NumPy 2 warns of.
OF_DIFFUSERS = "ignore:__array__ implementation:DeprecationWarning"
RUN = """
import json, sys
namespace = {"__name__": "__main__"}
for number, code in enumerate(json.load(sys.stdin)):
    exec(compile(code, f"block {number}", "exec"), namespace)
"""


def in_pages(pattern):
    """Return each match once, with the name of its page."""
    flags = re.MULTILINE
    joined = {name: re.sub(r"\\\n +", "", text) for name, text in PAGES.items()}  # lines that end in a backslash
    return sorted({(name, code) for name, text in joined.items() for code in re.findall(pattern, text, flags)})


# A command is a line of an indented block, or inline code. Capital letters are placeholders.
LINES = in_pages(r"^    (calotype .+)$")
INLINE = in_pages(r"`(calotype [^`|\n]+)`")


def test_there_are_snippets():
    assert sum(map(len, BLOCKS.values())) >= 20
    assert len(LINES) >= 20


@pytest.mark.parametrize("page", [name for name, blocks in BLOCKS.items() if blocks])
def test_the_blocks_of_a_page_run(page, pipe, tmp_path):
    done = fork_server.run(
        [sys.executable, "-P", "-W", "error", "-W", OF_DIFFUSERS, "-c", RUN],
        input=json.dumps(BLOCKS[page]),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def resolve(words):
    """Return the command, its full name, and its arguments."""
    command, name, rest = typer.main.get_command(cli.app), "calotype", words[1:]
    while rest and rest[0] in getattr(command, "commands", {}):
        command, name, rest = command.commands[rest[0]], f"{name} {rest[0]}", rest[1:]
    return command, name, rest


@pytest.mark.parametrize(("page", "line"), LINES + INLINE)
def test_a_command_exists_with_its_options(page, line):
    command, name, rest = resolve(shlex.split(line, comments=True))
    assert name != "calotype", f"{page}: {line}"
    options = {flag for param in command.params for flag in param.opts}
    assert {word for word in rest if re.fullmatch(r"--?[a-z][a-z-]*", word)} <= options | {"--help"}


@pytest.mark.parametrize(("page", "line"), LINES)
def test_a_command_line_parses(page, line):
    command, name, rest = resolve(shlex.split(line, comments=True))
    command.make_context(name, list(rest))


# The server's guide has other files, which tests/engine/serve/web/test_guide.py reads.
@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/guides/server.md"])
def test_a_toml_block_is_a_build(page, tmp_path):
    for code in re.findall(r"```toml\n(.*?)```", PAGES[page], flags=re.DOTALL):
        (tmp_path / "build.toml").write_text(code)
        spec_from(read_config(tmp_path / "build.toml"))


def test_the_extras_and_modules_that_pages_name_exist():
    known = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    text = "\n".join(PAGES.values())
    extras = {
        extra for group in re.findall(r"pip install '(?:calotype|\.)\[([^]]+)\]'", text) for extra in group.split(",")
    }
    assert extras
    assert extras <= known
    for module in set(re.findall(r"python (?:-P )?-m ((?:calotype|demo_training|tests\.helpers)[\w.]*)", text)):
        assert importlib.util.find_spec(module), module
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"(?:^    |`)make ([a-z-]+)", text, flags=re.MULTILINE)) <= set(targets)


def test_the_readme_is_short_and_its_links_exist():
    assert len(re.findall(r"\S+", README)) <= 700
    for path in re.findall(r'(?:src="|\]\()([^")#]+)', README):
        assert (ROOT / path).is_file(), path
