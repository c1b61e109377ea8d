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


_COLOR, _SHAPE = "|".join(scenes.COLORS), "|".join(scenes.SHAPES)
_THING = rf"an? (?:(small|large) )?({_COLOR}) ({_SHAPE})"
_CAPTION = re.compile(rf"{_THING}(?: ({'|'.join(scenes.RELATIONS)}) {_THING})? on an? ({_COLOR}) background")


def parse(caption: str) -> scenes.Scene:
    """Parse a caption; the things have no position. Raise `ValueError` if `scenes.caption` cannot have written it."""
    match = _CAPTION.fullmatch(caption)
    if match is None:
        raise ValueError(f'cannot parse "{caption}": expected a caption such as "{_EXAMPLE}".')
    size, color, shape, relation, second_size, second_color, second_shape, background = match.groups()
    things = [scenes.Thing(size=cast("scenes.SizeWord | None", size), color=color, shape=shape)]
    if second_color:
        size = cast("scenes.SizeWord | None", second_size)
        things.append(scenes.Thing(size=size, color=second_color, shape=second_shape))
    expected = scenes.Scene(
        background=background, things=tuple(things), relation=cast("scenes.Relation | None", relation)
    )
    if scenes.caption(expected) != caption:
        raise ValueError(f'"{caption}" has a wrong article; expected "{scenes.caption(expected)}".')
    if any(t.color == background for t in things):
        raise ValueError(f'"{caption}" has a thing in the color of its background.')
    return expected


def judge(pixels: NDArray[np.uint8], caption: str) -> Verdict:
    """Judge whether the image shows the caption. Sizes refer to images of `scenes.SIZE` pixels.  # [H, W, 3] uint8"""
    return compare(detect(pixels), parse(caption))


def compare(seen: DetectedScene, expected: scenes.Scene) -> Verdict:
    """Compare a detected scene with a caption. Things are matched so that most properties are right."""
    named, related = any(t.size for t in expected.things), expected.relation is not None
    background = seen.background == expected.background
    if len(seen.things) != len(expected.things):
        many = len(seen.things)
        number = _NUMBERS[many] if many < len(_NUMBERS) else f"{many} things"
        wrong_number = f"the image shows {number}, not {_NUMBERS[len(expected.things)]}"
        return Verdict(
            background=background,
            count=False,
            colors=False,
            shapes=False,
            sizes=False if named else None,
            relation=False if related else None,
            reason=next(_reasons(seen, (), expected), wrong_number),
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


def _agreement(order: tuple[DetectedThing, ...], expected: scenes.Scene) -> tuple[int, bool]:
    """Return how well the things match the caption in this order. The relation decides only between equal matches."""
    pairs = list(zip(order, expected.things, strict=True))
    matches = sum((s.color == a.color) + (s.shape == a.shape) + _size_matches(s, a, len(pairs)) for s, a in pairs)
    return matches, _related(order, expected.relation)


def _size(thing: DetectedThing, count: int) -> scenes.SizeWord:
    """Return the size word among `count` things. The limit is halfway between the largest small and smallest large."""
    radii = scenes.RADII[count]
    return "small" if thing.radius < (radii["small"][1] + radii["large"][0]) / 2 else "large"


def _size_matches(seen: DetectedThing, expected: scenes.Thing, count: int) -> bool:
    return expected.size is None or _size(seen, count) == expected.size


def _related(things: tuple[DetectedThing, ...], relation: scenes.Relation | None) -> bool:
    """Return whether the first thing is `relation` the second, more than in the other direction."""
    if relation is None:
        return True
    right, down = things[1].x - things[0].x, things[1].y - things[0].y
    return right > abs(down) if relation == "left of" else down > abs(right)


def _reasons(seen: DetectedScene, things: tuple[DetectedThing, ...], expected: scenes.Scene) -> Iterator[str]:
    """Yield all errors as texts, the most obvious first; without `things`, that of the background."""
    if seen.background is None:
        yield f"the background is not plain {expected.background}"
    elif seen.background != expected.background:
        yield f"the background is {seen.background}, not {expected.background}"
    if not things:
        return
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
