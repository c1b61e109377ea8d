"""Does a picture show what its caption says? A judge by rule, without learning, for pictures of `scenes`.

`parse` reads the caption, `sight.look` the picture, and `compare` holds one against the other. Each matter gets its
own verdict, so that a model that cannot count is told apart from one that mixes up colors. Knows the grammar of the
captions; knows nothing of pixels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, cast

from . import scenes
from .sight import Seen, SeenThing, look

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

_EXAMPLE = "an orange ring above a small green square on a white background"
_NUMBERS = ("nothing", "one thing", "two things", "three things", "four things")


@dataclass(frozen=True, kw_only=True)
class AskedThing:
    """One thing of a caption. `size` is None where the caption does not say."""

    size: scenes.SizeWord | None
    color: str
    shape: str

    @property
    def words(self) -> str:
        return scenes.article(" ".join(w for w in (self.size, self.color, self.shape) if w))


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A caption taken apart; with two things, `relation` is what the first shall be to the second."""

    background: str
    things: tuple[AskedThing, ...]
    relation: scenes.Relation | None = None

    @property
    def caption(self) -> str:
        things = f" {self.relation} ".join(t.words for t in self.things)
        return f"{things} on {scenes.article(self.background)} background"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What of a picture is right. `sizes` and `relation` are None where the caption does not ask for them.

    Where the number of things is wrong, nobody can say which is which: everything asked of them counts as wrong.
    """

    background: bool
    count: bool
    colors: bool
    shapes: bool
    sizes: bool | None
    relation: bool | None
    reason: str = ""  # the first thing that is wrong, in words; empty when nothing is

    @property
    def right(self) -> bool:
        return not self.reason


def _pattern() -> re.Pattern[str]:
    color, shape = "|".join(scenes.COLORS), "|".join(scenes.SHAPES)
    thing = rf"an? (?:(small|large) )?({color}) ({shape})"
    return re.compile(rf"{thing}(?: ({'|'.join(scenes.RELATIONS)}) {thing})? on an? ({color}) background")


_CAPTION = _pattern()


def parse(caption: str) -> Asked:
    """A caption taken apart. Raises ValueError where `scenes.caption` could not have written it."""
    found = _CAPTION.fullmatch(caption)
    if found is None:
        raise ValueError(f'"{caption}" is not a caption of a scene. One reads like this: "{_EXAMPLE}".')
    groups = found.groups()
    asked = Asked(
        background=groups[7],
        things=tuple(_asked_thing(g) for g in (groups[0:3], groups[4:7]) if g[1]),
        relation=cast("scenes.Relation | None", groups[3]),
    )
    if asked.caption != caption:
        raise ValueError(f'"{caption}" has a wrong article. It should read: "{asked.caption}".')
    if any(t.color == asked.background for t in asked.things):
        raise ValueError(f'"{caption}" asks for a thing that has the color of its background.')
    return asked


def _asked_thing(words: tuple[str | None, ...]) -> AskedThing:
    size, color, shape = words
    return AskedThing(size=cast("scenes.SizeWord | None", size), color=str(color), shape=str(shape))


def judge(pixels: NDArray[np.uint8], caption: str) -> Verdict:
    """Is the picture what the caption says? Sizes are judged in pixels of a `scenes` picture.  # [H, W, 3] uint8"""
    return compare(look(pixels), parse(caption))


def compare(seen: Seen, asked: Asked) -> Verdict:
    """What was seen against what was asked, the things paired so that most of it is right."""
    named, related = any(t.size for t in asked.things), asked.relation is not None
    background = seen.background == asked.background
    if len(seen.things) != len(asked.things):
        reason = _background_reason(seen, asked) if not background else _count_reason(seen, asked)
        return Verdict(
            background=background,
            count=False,
            colors=False,
            shapes=False,
            sizes=False if named else None,
            relation=False if related else None,
            reason=reason,
        )
    things = max(permutations(seen.things), key=lambda order: _agreement(order, asked))
    pairs = list(zip(things, asked.things, strict=True))
    return Verdict(
        background=background,
        count=True,
        colors=all(s.color == a.color for s, a in pairs),
        shapes=all(s.shape == a.shape for s, a in pairs),
        sizes=all(_size_fits(s, a, len(pairs)) for s, a in pairs) if named else None,
        relation=_related(things, asked.relation) if related else None,
        reason=next(_reasons(seen, things, asked), ""),
    )


def _agreement(order: tuple[SeenThing, ...], asked: Asked) -> tuple[int, bool]:
    """How well the things, in this order, are those asked for; the relation decides only between equals."""
    pairs = list(zip(order, asked.things, strict=True))
    matches = sum((s.color == a.color) + (s.shape == a.shape) + _size_fits(s, a, len(pairs)) for s, a in pairs)
    return matches, _related(order, asked.relation)


def _size(thing: SeenThing, count: int) -> scenes.SizeWord:
    """Small or large among `count` things: the line is half-way between the largest small and the smallest large."""
    radii = scenes.RADII[count]
    return "small" if thing.radius < (radii["small"][1] + radii["large"][0]) / 2 else "large"


def _size_fits(seen: SeenThing, asked: AskedThing, count: int) -> bool:
    return asked.size is None or _size(seen, count) == asked.size


def _related(things: tuple[SeenThing, ...], relation: scenes.Relation | None) -> bool:
    """Is the first thing `relation` the second, more so than in the other direction?"""
    if relation is None:
        return True
    right, down = things[1].x - things[0].x, things[1].y - things[0].y
    return right > abs(down) if relation == "left of" else down > abs(right)


def _reasons(seen: Seen, things: tuple[SeenThing, ...], asked: Asked) -> Iterator[str]:
    """All that is wrong, in words, the plainest first."""
    if seen.background != asked.background:
        yield _background_reason(seen, asked)
    names = ("the thing",) if len(things) == 1 else ("the first thing", "the second thing")
    triples = list(zip(names, things, asked.things, strict=True))
    for name, s, a in triples:
        if s.color != a.color:
            yield f"{name} is {s.color}, not {a.color}" if s.color else f"{name} has no clear color ({a.color})"
    for name, s, a in triples:
        if s.shape != a.shape:
            looks = f"looks like {scenes.article(s.shape)}, not" if s.shape else "does not look like"
            yield f"{name} {looks} {scenes.article(a.shape)}"
    for name, s, a in triples:
        if not _size_fits(s, a, len(things)):
            yield f"{name} is {_size(s, len(things))}, not {a.size}"
    if not _related(things, asked.relation):
        yield f"the first thing is not {asked.relation} the second"


def _background_reason(seen: Seen, asked: Asked) -> str:
    if seen.background is None:
        return f"the background is not plain {asked.background}"
    return f"the background is {seen.background}, not {asked.background}"


def _count_reason(seen: Seen, asked: Asked) -> str:
    many = len(seen.things)
    number = _NUMBERS[many] if many < len(_NUMBERS) else f"{many} things"
    return f"the picture shows {number}, not {_NUMBERS[len(asked.things)]}"
