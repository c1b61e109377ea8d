"""Labels next to the points of a scatter plot, without overlaps. This module does not know what the points are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
RINGS = 12  # largest distance of a name, in steps of its height


def label(figure: Any, axes: Any, points: Sequence[tuple[str, float, float]]) -> None:
    """Put each name next to its point, away from other names and points. A line connects a distant name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    places = [axes.transData.transform((x, y)) for _, x, y in points]
    dots = [Bbox.from_bounds(px - 5, py - 5, 10, 10) for px, py in places]
    inside = axes.get_window_extent(renderer)
    taken: list[Any] = []  # by names and their lines
    ink = axes.xaxis.label.get_color()
    for (name, x, y), place in zip(points, places, strict=True):
        probe = axes.text(x, y, name, fontsize=8)
        extent = probe.get_window_extent(renderer)
        probe.remove()
        box, far = _free(place, extent.width + 4, extent.height, [*dots, *taken], taken, inside)
        taken += [box, *(_line(box, place) if far else ())]
        line = {"arrowstyle": "-", "color": ink, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 4} if far else None
        spot = axes.transData.inverted().transform((box.x0 + 2, (box.y0 + box.y1) / 2))
        axes.annotate(name, (x, y), xytext=spot, va="center", ha="left", fontsize=8, arrowprops=line)


def _free(
    place: Any, width: float, height: float, things: Sequence[Any], names: Sequence[Any], inside: Any
) -> tuple[Any, bool]:
    """Return the nearest box that covers nothing and whose line crosses no name, or else the box that covers least."""
    candidates: list[tuple[int, int, Any]] = []
    for box, far in _boxes(place, width, height):
        is_inside = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
        covered = 100 * sum(box.overlaps(thing) for thing in things) + 1000 * (not is_inside)
        if far:
            covered += sum(spot.overlaps(name) for spot in _line(box, place) for name in names)
        if not covered:
            return box, far
        candidates.append((covered, len(candidates), box))
    return min(candidates)[2], True


def _boxes(place: Any, width: float, height: float) -> Iterator[tuple[Any, bool]]:
    """Yield places for a name around a point, the nearest first, and whether each needs a line."""
    from matplotlib.transforms import Bbox

    for ring in range(RINGS):
        away = 7 + 13 * ring
        for dx, dy in SIDES:
            x = place[0] + dx * (7 if dy else away) - (width if dx < 0 else width / 2 if dx == 0 else 0)
            yield Bbox.from_bounds(x, place[1] + dy * away - height / 2, width, height), ring > 0


def _line(box: Any, place: Any) -> list[Any]:
    """Return the line from a name to its point as small boxes, without those inside the name or on the point."""
    from matplotlib.transforms import Bbox

    middle = ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
    spots = []
    steps = max(2, int(max(abs(middle[i] - place[i]) for i in (0, 1)) / 3))
    for step in range(1, steps):
        x, y = (place[i] + (middle[i] - place[i]) * step / steps for i in (0, 1))
        spot = Bbox.from_bounds(x - 1.5, y - 1.5, 3, 3)
        if not spot.overlaps(box) and (x - place[0]) ** 2 + (y - place[1]) ** 2 > 49:
            spots.append(spot)
    return spots
