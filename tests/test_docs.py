"""The documentation site: it builds strictly, fetches nothing, and has an entry for every error."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from calotype import errors

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
    commands = (site / "reference" / "cli.html").read_text()
    for words in ("calotype-generate", "calotype-build", "calotype-bench", "calotype-bench-compare", "calotype-doctor"):
        assert f'id="{words}"' in commands, words
    assert "--negative-prompt" in commands


def test_every_error_has_an_entry():
    heads = re.findall(r"^###? (\w+)$", (DOCS / "troubleshooting.md").read_text(), flags=re.MULTILINE)
    assert set(errors.__all__) - {"CalotypeError"} <= set(heads)


def test_images_are_small_and_used():
    images = sorted((DOCS / "images").iterdir())
    text = "".join(page.read_text() for page in DOCS.rglob("*.md"))
    assert max(image.stat().st_size for image in images) < 60_000
    assert sum(image.stat().st_size for image in images) < 1_500_000
    assert [image.name for image in images if f"images/{image.name}" not in text] == []
