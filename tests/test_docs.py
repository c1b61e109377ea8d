"""The documentation site: it builds strictly, fetches nothing, and has an entry for every error."""

import inspect
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import calotype
from calotype import errors
from calotype.request.diffusers_names import ALIASES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
REMOTE = ("http:", "https:", "//")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Assets(HTMLParser):
    """Collect the addresses that a browser fetches for a page: all but links."""

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attrs):
        if tag != "a":
            self.addresses += [value for name, value in attrs if name in ("src", "srcset", "href", "data") and value]


def test_no_page_fetches_anything_from_a_remote_host(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        parser = Assets()
        parser.feed(page.read_text())
        assert [address for address in parser.addresses if address.startswith(REMOTE)] == [], page
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//", sheet.read_text()), sheet


def test_the_references_list_the_public_names_and_the_commands(site):
    python = (site / "reference" / "api.html").read_text()
    for name in ("load", "Pipeline.set_lora", "Result", "clip_score", "errors.InputError"):
        assert f'id="calotype.{name}"' in python, name
    guide = (site / "guides" / "from-diffusers.html").read_text()
    for theirs, alias in ALIASES.items():
        assert re.search(rf"{theirs}</code></td>\s*<td><code>{alias.name}<", guide), theirs
    commands = (site / "reference" / "cli.html").read_text()
    for words in ("calotype-generate", "calotype-build", "calotype-bench", "calotype-bench-compare", "calotype-doctor"):
        assert f'id="{words}"' in commands, words
    assert "--negative-prompt" in commands


def public_functions():
    """Yield the name and the function of everything that users call."""
    yield from (("load", calotype.load), ("load_upscaler", calotype.load_upscaler))
    for name in ("accelerate", "accelerated", "accelerate_report", "restore"):
        yield name, getattr(calotype, name)
    yield ("clip_score", calotype.clip_score)
    yield from (("scheduler_names", calotype.scheduler_names), ("preprocess.canny", calotype.preprocess.canny))
    for kind in (calotype.Pipeline, calotype.Clip, calotype.Report, calotype.Upscaler):
        for name, member in vars(kind).items():
            if inspect.isfunction(member) and (name == "__call__" or not name.startswith("_")):
                yield f"{kind.__name__}.{name}", member


@pytest.mark.parametrize(("name", "function"), list(public_functions()))
def test_a_public_function_describes_its_arguments_and_result(name, function):
    documentation = inspect.getdoc(function)
    signature = inspect.signature(function)
    for argument, about in signature.parameters.items():
        of_a_call = name in ("Pipeline.stream", "Pipeline.profile") and argument in ("prompt", "arguments")
        if argument != "self" and not of_a_call:  # a call has them
            stars = "**" if about.kind is about.VAR_KEYWORD else ""
            assert f"\n    {stars}{argument}: " in documentation, argument
    if signature.return_annotation != "None":
        assert "\nReturns:\n" in documentation or documentation.startswith("Return ")
    if name not in ("scheduler_names", "Pipeline.stream", "Pipeline.cancel", "Report.to_json"):
        assert "\nRaises:\n" in documentation


def test_every_public_name_has_an_example():
    page = (DOCS / "reference" / "api.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL))
    assert [name for name in calotype.__all__ if not re.search(rf"calotype\.{name}\b", code)] == []
    methods = [name.split(".")[1] for name, _ in public_functions() if re.match("Pipeline|Clip|Report|Upscaler", name)]
    assert [name for name in methods if name != "__call__" and not re.search(rf"\.{name}\b", code)] == []


def test_every_error_has_an_entry():
    heads = re.findall(r"^###? (\w+)$", (DOCS / "troubleshooting.md").read_text(), flags=re.MULTILINE)
    assert set(errors.__all__) - {"CalotypeError"} <= set(heads)


def test_images_are_small_and_used():
    images = sorted((DOCS / "images").iterdir())
    text = "".join(page.read_text() for page in DOCS.rglob("*.md"))
    assert max(image.stat().st_size for image in images) < 60_000
    assert sum(image.stat().st_size for image in images) < 1_500_000
    assert [image.name for image in images if f"images/{image.name}" not in text] == []
