"""Identifiers are the field's terms: words that say nothing of what a value is are banned as names."""

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = ("engine", "export", "kernels", "benchmarks")
BANNED = {"told", "said", "asked", "beside", "twice", "reuses", "hoisted", "painter", "course", "setting_out"}
BANNED |= {"remembered", "distrust", "found", "made", "given", "wanted", "whole", "picture", "pictures", "painted"}
# A fit is a least-squares fit, and only samplers are fitted: these files may use the words.
LEAST_SQUARES = {"fit", "fits", "fitted"}
OF_FITS = re.compile(
    r"export/(fit|commands|builder)/.*|export/__init__.py|engine/(pipeline|fitting|generator).py|benchmarks/.*fitted.py|"
    r"engine/(sampling/fitted|stages/fewer_calls|files/cache|request/request).py|benchmarks/(run/ours|suite/.*).py"
)
NOT_OURS = re.compile(r"NotFound")  # in the names of exceptions of Python and of libraries


def identifiers(path):
    for node in ast.walk(ast.parse(path.read_text())):
        for field in ("id", "attr", "name", "arg"):
            if isinstance(name := getattr(node, field, None), str):
                yield name


def words(name):
    """Return the words of a name in snake or camel case."""
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", NOT_OURS.sub("", name)).lower().split("_")


def test_no_private_word_is_an_identifier():
    uses = defaultdict(set)
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            if "results" not in path.parts:
                for name in identifiers(path):
                    place = str(path.relative_to(ROOT))
                    banned = BANNED if OF_FITS.fullmatch(place) else BANNED | LEAST_SQUARES
                    for word in {name.strip("_").lower(), *words(name)} & banned:
                        uses[word].add(place)
    assert uses == {}
