"""Synthetic scenes: one or two colored shapes on a plain background, with a caption.

A scene is data (`Scene`); `render` draws its pixels and `caption` writes its text. Everything is a function of the
seed. Shapes are half-plane and disc formulas on a supersampled grid, so that edges are antialiased. This module does
not know networks.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SIZE = 128  # pixels per side
SUPERSAMPLE = 4

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "green": (30, 150, 50),
    "blue": (35, 60, 215),
    "yellow": (250, 220, 30),
    "orange": (250, 135, 10),
    "purple": (130, 30, 165),
    "pink": (250, 150, 195),
    "cyan": (40, 200, 225),
    "black": (12, 12, 12),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart")
Relation = Literal["left of", "above"]
SizeWord = Literal["small", "large"]
RELATIONS: tuple[Relation, ...] = ("left of", "above")

# Radius of the circle around a shape, in pixels: (low, high) for each size word; None is "no size word".
RADII: dict[int, dict[SizeWord | None, tuple[float, float]]] = {
    1: {"small": (16, 20), "large": (34, 42), None: (16, 42)},
    2: {"small": (15, 18), "large": (25, 29), None: (18, 26)},
}

Array = NDArray[np.float64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One shape: its words (`size` is None without a size word), and its position and radius in pixels.

    Position and radius are 0 if they are not known, as in a parsed caption.
    """

    color: str
    shape: str
    size: SizeWord | None
    x: float = 0.0
    y: float = 0.0
    radius: float = 0.0

    @property
    def words(self) -> str:
        return " ".join(w for w in (self.size, self.color, self.shape) if w)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One or two things on a background; with two, `relation` is what the first is to the second."""

    background: str
    things: tuple[Thing, ...]
    relation: Relation | None = None


def _regular(angles_deg: list[float], radii: list[float]) -> NDArray[np.float64]:
    a = np.deg2rad(np.asarray(angles_deg))
    r = np.asarray(radii)
    return np.stack([r * np.cos(a), -r * np.sin(a)], axis=1)


def _polygon(u: Array, v: Array, points: Array) -> Bool:
    """Return whether (u, v) is inside the polygon, by the even-odd rule."""
    inside = np.zeros(u.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        crosses = (v < y0) != (v < y1)
        inside ^= crosses & (u < x0 + (v - y0) * (x1 - x0) / (y1 - y0))
    return inside


_STAR = _regular([90 + 36 * i for i in range(10)], [1.0, 0.42] * 5)
_TRIANGLE = _regular([90, 210, 330], [1.0] * 3) + np.array([0.0, 0.12])


def _heart(u: Array, v: Array) -> Bool:
    """The algebraic heart (x^2 + y^2 - 1)^3 <= x^2 y^3, scaled to fill the unit circle."""
    x, y = 1.24 * u, 0.14 - 1.24 * v
    return (x * x + y * y - 1) ** 3 <= x * x * y**3


def _cross(u: Array, v: Array) -> Bool:
    arm, reach = 0.28, 0.94
    return ((abs(u) <= arm) & (abs(v) <= reach)) | ((abs(v) <= arm) & (abs(u) <= reach))


# Inside tests in units of the radius: u to the right, v downwards.
_INSIDE: dict[str, Callable[[Array, Array], Bool]] = {
    "circle": lambda u, v: u * u + v * v <= 0.92**2,
    "square": lambda u, v: (abs(u) <= 0.8) & (abs(v) <= 0.8),
    "triangle": lambda u, v: _polygon(u, v, _TRIANGLE),
    "star": lambda u, v: _polygon(u, v, _STAR),
    "ring": lambda u, v: (u * u + v * v <= 0.96**2) & (u * u + v * v >= 0.56**2),
    "cross": _cross,
    "diamond": lambda u, v: abs(u) / 0.76 + abs(v) <= 1.0,
    "heart": _heart,
}


def coverage(thing: Thing) -> Array:
    """Return the share of each pixel that `thing` covers, in [0, 1].  # [SIZE, SIZE]"""
    low_x, low_y = (max(0, int(c - thing.radius) - 1) for c in (thing.x, thing.y))
    high_x, high_y = (min(SIZE, int(c + thing.radius) + 2) for c in (thing.x, thing.y))
    u = (_subpixels(low_x, high_x)[None, :] - thing.x) / thing.radius
    v = (_subpixels(low_y, high_y)[:, None] - thing.y) / thing.radius
    fine = _INSIDE[thing.shape](*np.broadcast_arrays(u, v)).astype(np.float64)
    box = fine.reshape(high_y - low_y, SUPERSAMPLE, high_x - low_x, SUPERSAMPLE).mean(axis=(1, 3))
    full = np.zeros((SIZE, SIZE))
    full[low_y:high_y, low_x:high_x] = box
    return full


def _subpixels(low: int, high: int) -> Array:
    return (np.arange(low * SUPERSAMPLE, high * SUPERSAMPLE) + 0.5) / SUPERSAMPLE


def render(scene: Scene) -> NDArray[np.uint8]:
    """Draw the scene.  # [SIZE, SIZE, 3] uint8"""
    canvas = np.empty((SIZE, SIZE, 3))
    canvas[:] = COLORS[scene.background]
    for thing in scene.things:
        alpha = coverage(thing)[..., None]
        canvas = canvas * (1 - alpha) + np.asarray(COLORS[thing.color], dtype=np.float64) * alpha
    return np.rint(canvas).astype(np.uint8)


def article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def caption(scene: Scene) -> str:
    """Return the scene's caption, such as "a red circle left of a green square on a white background"."""
    things = f" {scene.relation} ".join(article(t.words) for t in scene.things)
    return f"{things} on {article(scene.background)} background"


def _draw_thing(rng: np.random.Generator, count: int, colors: list[str], place: tuple[float, float]) -> Thing:
    odds = [0.16, 0.42, 0.42] if count == 1 else [0.5, 0.25, 0.25]
    size: SizeWord | None = (None, "small", "large")[rng.choice(3, p=odds)]
    radius = float(rng.uniform(*RADII[count][size]))
    # How far it may move from its place, in pixels, inside the image and away from its neighbor.
    slack = min(18.0, SIZE / 2 - 4 - radius) if count == 1 else max(0.5, 29.5 - radius) * 0.8
    jitter = rng.uniform(-1, 1, 2) * slack
    return Thing(
        color=str(rng.choice(colors)),
        shape=str(rng.choice(SHAPES)),
        size=size,
        x=place[0] + float(jitter[0]),
        y=place[1] + float(jitter[1]),
        radius=radius,
    )


def is_held_out(words: str) -> bool:
    """Return whether training never uses the caption (one in ten). Only these show whether a model generalizes."""
    return zlib.crc32(words.encode()) % 10 == 0


def draw_scene(seed: int, count: int | None = None, held_out: bool | None = None) -> Scene:
    """Draw a random scene, a function of the seed, with `count` (1 or 2) things; by default two thirds have two.

    `held_out`: True draws a caption that training never uses, False one that it may use, None any caption.
    """
    rng = np.random.default_rng([seed, 0xCA107])
    while True:
        scene = _draw(rng, count or int(rng.choice([1, 2], p=[0.33, 0.67])))
        if held_out is None or is_held_out(caption(scene)) == held_out:
            return scene


def held_out_captions(things: int, count: int, seed: int = 0) -> list[str]:
    """Return `count` different held-out captions of `things` things."""
    captions: dict[str, None] = {}
    while len(captions) < count:
        captions[caption(draw_scene(seed, things, held_out=True))] = None
        seed += 1
    return list(captions)


def _draw(rng: np.random.Generator, n: int) -> Scene:
    names = list(COLORS)
    background = str(rng.choice(names))
    others = [c for c in names if c != background]
    middle = SIZE / 2
    if n == 1:
        return Scene(background=background, things=(_draw_thing(rng, 1, others, (middle, middle)),))
    relation = RELATIONS[int(rng.integers(2))]
    across = middle + float(rng.uniform(-10, 10))
    places = [(a, across) if relation == "left of" else (across, a) for a in (SIZE * 0.26, SIZE * 0.74)]
    return Scene(background=background, things=tuple(_draw_thing(rng, 2, others, p) for p in places), relation=relation)
