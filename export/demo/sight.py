"""What a picture shows: its background, and the colour, shape, place and radius of each thing on it.

Nothing here is learned. A pixel belongs to a thing when it is nearer to a colour of a thing than to the background;
connected pixels are one thing; its colour is the median of its core, and its shape the template, drawn with the
formulas of `scenes`, that overlaps it best. Made for generated pictures: soft edges, noise and specks are expected.
Knows nothing of captions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]

from calotype.export.demo import scenes

COLOUR_REACH = 0.15  # Oklab; a colour farther than this from every name has none (the nearest two names are 0.18 apart)
PLAIN_SHARE = 0.9  # of the frame must have the background's colour
PURE_SHARE = 0.8  # of a thing's core must have the thing's colour
SPECK = 25  # pixels; what has a smaller core is dirt, not a thing
FRAME = 3  # pixels at the border that no thing reaches
MIXED = 60.0  # sRGB steps; farther than this from every mixture of thing and background is another colour
SHAPE_FIT, RING_FIT = 0.95, 0.9  # the least overlap at which a thing has a shape at all; a ring is thin, and loses more
SHAPE_LEAD = 0.004  # over the next shape; below it a thing could be either
HOLE_SHARE = 0.08  # of a thing's filled area: a ring has more hole than this (34 % as drawn), all other shapes less

GRID, REACH = 32, 1.1  # a normalised shape: cells a side, and how far it is kept, in square roots of its area
SOFTNESS = 0.7  # blur of a seen shape, in cells, so that half a cell's shift costs little
TEMPLATE_SOFTNESS = (0.7, 1.4, 2.1)  # of the templates: as sharp as drawn, and as soft as a small shape is after a VAE
CORNERS = (0.0, 0.2)  # of the templates: as drawn, and worn round

Array = NDArray[np.float64]
Bool = NDArray[np.bool_]
Pixels = NDArray[np.uint8]
Labels = NDArray[np.intp]

_NAMES = tuple(scenes.COLOURS)
_PALETTE = np.array(list(scenes.COLOURS.values()), dtype=np.uint8)  # [10, 3]


@dataclass(frozen=True, kw_only=True)
class SeenThing:
    """One thing as it looks. `colour` or `shape` is None where it looks like none; the rest is in pixels."""

    colour: str | None
    shape: str | None
    x: float
    y: float
    radius: float
    fit: float  # overlap with the best template, in [0, 1]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """All that is on a picture. `background` is None where it is not plain or of no named colour."""

    background: str | None
    things: tuple[SeenThing, ...]


def look(pixels: Pixels) -> Seen:
    """What is seen on a picture.  # [H, W, 3] uint8"""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"A picture is uint8 [H, W, 3]; this one is {pixels.dtype} {list(pixels.shape)}.")
    ground, background = _ground(pixels)
    labels = _labels(pixels, ground)
    numbers, found = _components(_foreground(pixels, ground, labels))
    windows = ndimage.find_objects(numbers)
    things = [_thing(_cut(pixels, ground, labels, numbers, n, windows[n - 1])) for n in found]
    return Seen(background=background, things=tuple(things))


def oklab(rgb: Pixels) -> Array:
    """sRGB as Oklab (B. Ottosson, 2020), where equal distances look about equally far.  # [..., 3] uint8 -> [..., 3]"""
    return np.asarray(np.cbrt(_LINEAR[rgb] @ _RGB_TO_LMS.T) @ _LMS_TO_OKLAB.T)


_UNIT = np.arange(256) / 255
_LINEAR = np.where(_UNIT <= 0.04045, _UNIT / 12.92, ((_UNIT + 0.055) / 1.055) ** 2.4)
_RGB_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LMS_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_PALETTE_LAB = oklab(_PALETTE)


def _nearest(points: Array, centres: Array) -> Labels:
    """For each point the nearest centre.  # [..., 3], [N, 3] -> [...]"""
    return np.asarray(((centres**2).sum(axis=1) - 2 * points @ centres.T).argmin(axis=-1))


def _name(colour: Pixels) -> str | None:
    away = np.linalg.norm(_PALETTE_LAB - oklab(colour), axis=1)
    best = int(away.argmin())
    return _NAMES[best] if away[best] <= COLOUR_REACH else None


def _median(colours: Pixels) -> Pixels:
    return np.asarray(np.median(colours, axis=0)).astype(np.uint8)


def _ground(pixels: Pixels) -> tuple[Pixels, str | None]:
    """The background's colour, which is the frame's, and its name.  # [H, W, 3] -> [3]"""
    outside = np.ones(pixels.shape[:2], dtype=bool)
    outside[FRAME:-FRAME, FRAME:-FRAME] = False
    frame = pixels[outside]
    ground = _median(frame)
    plain = np.linalg.norm(oklab(frame) - oklab(ground), axis=-1) <= COLOUR_REACH
    return ground, _name(ground) if plain.mean() >= PLAIN_SHARE else None


def _labels(pixels: Pixels, ground: Pixels) -> Labels:
    """For each pixel 1 + the nearest named colour, 0 where the background is nearer.  # [H, W]"""
    lab, palette = oklab(ground), _PALETTE_LAB.copy()
    own = _nearest(lab, palette)
    palette[own] = lab
    best = _nearest(oklab(pixels), palette)
    return np.where(best == own, 0, best + 1)


def _foreground(pixels: Pixels, ground: Pixels, labels: Labels) -> Bool:
    """Where the things are: nearer to the colour of a thing than to the background.  # [H, W]

    Only colours with a core count: along an edge, red and white mix to a band of pink. Mixing is linear in sRGB, so
    this distance is too, and the line falls half-way even where two things nearly touch.
    """
    often = 1 + np.flatnonzero(np.bincount(labels.ravel(), minlength=1 + len(_NAMES))[1:] >= SPECK)
    present = [i - 1 for i in often if _core(labels == i).sum() >= SPECK]
    centres = np.vstack([ground, _PALETTE[present]]).astype(np.float64)
    return np.asarray(_nearest(pixels.astype(np.float64), centres) > 0)


def _core(mask: Bool) -> Bool:
    return np.asarray(ndimage.binary_erosion(mask, np.ones((3, 3))))


def _components(foreground: Bool) -> tuple[Labels, list[int]]:
    """The connected regions, numbered, and which of them are large and thick enough to be things.  # [H, W]"""
    numbers, _ = ndimage.label(foreground)
    large = 1 + np.flatnonzero(np.bincount(numbers.ravel())[1:] > SPECK)
    return numbers, [int(n) for n in large if _core(numbers == n).sum() >= SPECK]


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """The part of a picture around one thing, its upper left corner at pixel (left, top)."""

    left: int
    top: int
    ground: Pixels  # [3]
    pixels: Pixels  # [h, w, 3]
    labels: Labels  # [h, w]
    mask: Bool  # [h, w], the thing
    near: Bool  # [h, w], the thing and its edge


def _cut(pixels: Pixels, ground: Pixels, labels: Labels, numbers: Labels, n: int, window: tuple[slice, slice]) -> _Cut:
    edge = 6
    top, left = (max(0, w.start - edge) for w in window)
    part = (slice(top, window[0].stop + edge), slice(left, window[1].stop + edge))
    mask = numbers[part] == n
    others = (numbers[part] > 0) & ~mask
    near = ndimage.binary_dilation(mask, iterations=edge) & ~ndimage.binary_dilation(others, iterations=edge // 2)
    return _Cut(left=left, top=top, ground=ground, pixels=pixels[part], labels=labels[part], mask=mask, near=near)


def _thing(cut: _Cut) -> SeenThing:
    colour, alpha = _colour(cut)
    x, y = _centroid(alpha)
    fits = _fits(alpha)
    shape = max(fits, key=lambda s: fits[s])
    return SeenThing(
        colour=colour,
        shape=shape if _is_clear(fits) and (_hole_share(cut.mask) > HOLE_SHARE) == (shape == "ring") else None,
        x=cut.left + x + 0.5,
        y=cut.top + y + 0.5,
        radius=float(np.sqrt(alpha.sum() / _unit_area(shape))),
        fit=fits[shape],
    )


def _colour(cut: _Cut) -> tuple[str | None, Array]:
    """The thing's colour, None where it has several, and how much of it each pixel holds, in [0, 1].  # [h, w]

    The sum of these shares is the thing's area, however soft the edge is.
    """
    core = _innermost(cut.mask)
    ground = cut.ground.astype(np.float64)
    colour = _median(cut.pixels[core])
    line, offset = colour - ground, cut.pixels - ground
    if np.bincount(cut.labels[core], minlength=2)[1:].max() < PURE_SHARE * core.sum():
        return None, cut.mask.astype(np.float64)
    alpha = np.clip(offset @ line / (line @ line), 0, 1)
    mixed = np.linalg.norm(offset - alpha[..., None] * line, axis=-1) <= MIXED
    pure = mixed[cut.mask].mean() >= PURE_SHARE
    return _name(colour) if pure else None, alpha * cut.near


def _innermost(mask: Bool) -> Bool:
    """The half of a thing that is farthest from its edge, or all that is more than four pixels from it."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    return np.asarray(depth >= min(4.0, depth.max() / 2))


def _is_clear(fits: dict[str, float]) -> bool:
    best = max(fits, key=lambda s: fits[s])
    second = max(f for s, f in fits.items() if s != best)
    return fits[best] >= (RING_FIT if best == "ring" else SHAPE_FIT) and fits[best] - second >= SHAPE_LEAD


def _hole_share(mask: Bool) -> float:
    return 1 - float(mask.sum() / ndimage.binary_fill_holes(mask).sum())


def _centroid(alpha: Array) -> tuple[float, float]:
    """The centre of mass (x, y) in pixels, 0 being the middle of the first."""
    down, across = alpha.sum(axis=1), alpha.sum(axis=0)
    return float(across @ np.arange(across.size) / across.sum()), float(down @ np.arange(down.size) / down.sum())


def _normalised(mask: Array, shift: tuple[float, float], scale: float) -> Array:
    """A soft mask resampled so that its area is `scale` squared and its centroid `shift` from the middle, in square
    roots of the area.  # [h, w] -> [GRID, GRID]
    """
    root = np.sqrt(mask.sum())
    x, y = _centroid(mask)
    cells = ((np.arange(GRID) + 0.5) / GRID * 2 - 1) * REACH
    down, across = (c + (cells - s) * root / scale for c, s in ((y, shift[1]), (x, shift[0])))
    at = np.stack(np.meshgrid(down, across, indexing="ij"))
    return np.asarray(ndimage.map_coordinates(mask, at, order=1))


def _fits(alpha: Array) -> dict[str, float]:
    """The overlap of a soft mask with each shape's best template: Tanimoto's ab / (a^2 + b^2 - ab).

    For hard masks that is intersection over union; for soft ones it also sees *how* soft each edge is, which tells a
    blurred star from a circle where the sum of minima does not.
    """
    seen = ndimage.gaussian_filter(_normalised(alpha, (0, 0), 1), SOFTNESS).astype(np.float32).ravel()
    bank, squares = _templates()
    product = bank @ seen
    best = (product / (squares + seen @ seen - product)).max(axis=1)
    return dict(zip(scenes.SHAPES, map(float, best), strict=True))


_UNIT_RADIUS = 60.0  # pixels: as large as a scene holds


@cache
def _unit(shape: str) -> Array:
    middle = scenes.SIZE / 2
    return scenes.coverage(
        scenes.Thing(colour="black", shape=shape, size=None, x=middle, y=middle, radius=_UNIT_RADIUS)
    )


@cache
def _unit_area(shape: str) -> float:
    """The area of a shape in squares of its radius."""
    return float(_unit(shape).sum()) / _UNIT_RADIUS**2


def _rounded(mask: Array, corner: float) -> Array:
    """A shape with its corners worn off, as autoencoders do: `corner` is the blur that wears them, in radii."""
    return mask if corner == 0 else (ndimage.gaussian_filter(mask, corner * _UNIT_RADIUS) >= 0.5).astype(np.float64)


@cache
def _templates() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Each shape at a few shifts, scales, corners and softnesses; their squares.  # [S, T, GRID * GRID], [S, T]"""
    near = ((0.0, 0.0), (0.04, 0.0), (-0.04, 0.0), (0.0, 0.04), (0.0, -0.04))
    bank = [
        [
            ndimage.gaussian_filter(_normalised(_rounded(_unit(shape), corner), shift, scale), softness).ravel()
            for corner, shift, scale, softness in product(CORNERS, near, (0.95, 1.0, 1.05), TEMPLATE_SOFTNESS)
        ]
        for shape in scenes.SHAPES
    ]
    cells = np.array(bank, dtype=np.float32)
    return cells, (cells**2).sum(axis=-1)
