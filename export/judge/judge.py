"""Decide whether an image shows what its caption says: a rule-based judge for images of `scenes`.

`parse` reads the caption, `sight.detect` reads the image, and `compare` compares them. Each property gets its own
verdict, so that the result separates a model that cannot count from one that mixes up colors. This module knows the
grammar of captions; it does not look at pixels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, cast

from . import scenes
from .sight import DetectedScene, DetectedThing, detect

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

_EXAMPLE = "an orange ring above a small green square on a white background"
_NUMBERS = ("nothing", "one thing", "two things", "three things", "four things")


@dataclass(frozen=True, kw_only=True)
class CaptionThing:
    """One thing of a caption. `size` is None if the caption does not mention it."""

    size: scenes.SizeWord | None
    color: str
    shape: str

    @property
    def words(self) -> str:
        return scenes.article(" ".join(w for w in (self.size, self.color, self.shape) if w))


@dataclass(frozen=True, kw_only=True)
class CaptionScene:
    """A parsed caption. With two things, `relation` is the expected relation of the first to the second."""

    background: str
    things: tuple[CaptionThing, ...]
    relation: scenes.Relation | None = None

    @property
    def caption(self) -> str:
        things = f" {self.relation} ".join(t.words for t in self.things)
        return f"{things} on {scenes.article(self.background)} background"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The properties of an image that are right. `sizes` and `relation` are None if the caption has none.

    If the number of things is wrong, things cannot be matched, and all their properties count as wrong.
    """

    background: bool
    count: bool
    colors: bool
    shapes: bool
    sizes: bool | None
    relation: bool | None
    reason: str = ""  # the first error as text; empty if everything is right

    @property
    def right(self) -> bool:
        return not self.reason


def _pattern() -> re.Pattern[str]:
    color, shape = "|".join(scenes.COLORS), "|".join(scenes.SHAPES)
    thing = rf"an? (?:(small|large) )?({color}) ({shape})"
    return re.compile(rf"{thing}(?: ({'|'.join(scenes.RELATIONS)}) {thing})? on an? ({color}) background")


_CAPTION = _pattern()


def parse(caption: str) -> CaptionScene:
    """Parse a caption. Raise `ValueError` if `scenes.caption` cannot have written it."""
    match = _CAPTION.fullmatch(caption)
    if match is None:
        raise ValueError(f'cannot parse "{caption}": expected a caption such as "{_EXAMPLE}".')
    groups = match.groups()
    expected = CaptionScene(
        background=groups[7],
        things=tuple(_caption_thing(g) for g in (groups[0:3], groups[4:7]) if g[1]),
        relation=cast("scenes.Relation | None", groups[3]),
    )
    if expected.caption != caption:
        raise ValueError(f'"{caption}" has a wrong article; expected "{expected.caption}".')
    if any(t.color == expected.background for t in expected.things):
        raise ValueError(f'"{caption}" has a thing in the color of its background.')
    return expected


def _caption_thing(words: tuple[str | None, ...]) -> CaptionThing:
    size, color, shape = words
    return CaptionThing(size=cast("scenes.SizeWord | None", size), color=str(color), shape=str(shape))


def judge(pixels: NDArray[np.uint8], caption: str) -> Verdict:
    """Judge whether the image shows the caption. Sizes refer to images of `scenes.SIZE` pixels.  # [H, W, 3] uint8"""
    return compare(detect(pixels), parse(caption))


def compare(seen: DetectedScene, expected: CaptionScene) -> Verdict:
    """Compare a detected scene with a caption. Things are matched so that most properties are right."""
    named, related = any(t.size for t in expected.things), expected.relation is not None
    background = seen.background == expected.background
    if len(seen.things) != len(expected.things):
        reason = _background_reason(seen, expected) if not background else _count_reason(seen, expected)
        return Verdict(
            background=background,
            count=False,
            colors=False,
            shapes=False,
            sizes=False if named else None,
            relation=False if related else None,
            reason=reason,
        )
    things = max(permutations(seen.things), key=lambda order: _agreement(order, expected))
    pairs = list(zip(things, expected.things, strict=True))
    return Verdict(
        background=background,
        count=True,
        colors=all(s.color == a.color for s, a in pairs),
        shapes=all(s.shape == a.shape for s, a in pairs),
        sizes=all(_size_matches(s, a, len(pairs)) for s, a in pairs) if named else None,
        relation=_related(things, expected.relation) if related else None,
        reason=next(_reasons(seen, things, expected), ""),
    )


def _agreement(order: tuple[DetectedThing, ...], expected: CaptionScene) -> tuple[int, bool]:
    """Return how well the things match the caption in this order. The relation decides only between equal matches."""
    pairs = list(zip(order, expected.things, strict=True))
    matches = sum((s.color == a.color) + (s.shape == a.shape) + _size_matches(s, a, len(pairs)) for s, a in pairs)
    return matches, _related(order, expected.relation)


def _size(thing: DetectedThing, count: int) -> scenes.SizeWord:
    """Return the size word among `count` things. The limit is halfway between the largest small and smallest large."""
    radii = scenes.RADII[count]
    return "small" if thing.radius < (radii["small"][1] + radii["large"][0]) / 2 else "large"


def _size_matches(seen: DetectedThing, expected: CaptionThing, count: int) -> bool:
    return expected.size is None or _size(seen, count) == expected.size


def _related(things: tuple[DetectedThing, ...], relation: scenes.Relation | None) -> bool:
    """Return whether the first thing is `relation` the second, more than in the other direction."""
    if relation is None:
        return True
    right, down = things[1].x - things[0].x, things[1].y - things[0].y
    return right > abs(down) if relation == "left of" else down > abs(right)


def _reasons(seen: DetectedScene, things: tuple[DetectedThing, ...], expected: CaptionScene) -> Iterator[str]:
    """Yield all errors as texts, the most obvious first."""
    if seen.background != expected.background:
        yield _background_reason(seen, expected)
    names = ("the thing",) if len(things) == 1 else ("the first thing", "the second thing")
    triples = list(zip(names, things, expected.things, strict=True))
    for name, s, a in triples:
        if s.color != a.color:
            yield f"{name} is {s.color}, not {a.color}" if s.color else f"{name} has no clear color ({a.color})"
    for name, s, a in triples:
        if s.shape != a.shape:
            looks = f"looks like {scenes.article(s.shape)}, not" if s.shape else "does not look like"
            yield f"{name} {looks} {scenes.article(a.shape)}"
    for name, s, a in triples:
        if not _size_matches(s, a, len(things)):
            yield f"{name} is {_size(s, len(things))}, not {a.size}"
    if not _related(things, expected.relation):
        yield f"the first thing is not {expected.relation} the second"


def _background_reason(seen: DetectedScene, expected: CaptionScene) -> str:
    if seen.background is None:
        return f"the background is not plain {expected.background}"
    return f"the background is {seen.background}, not {expected.background}"


def _count_reason(seen: DetectedScene, expected: CaptionScene) -> str:
    many = len(seen.things)
    number = _NUMBERS[many] if many < len(_NUMBERS) else f"{many} things"
    return f"the image shows {number}, not {_NUMBERS[len(expected.things)]}"
