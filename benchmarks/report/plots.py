"""Plots of a case as SVG for a page. Each maker has one color; text and lines take the color of the page.

Every function takes the rows of one case, in the order of the run, and returns "" if there is nothing to show. The rows
come from `columns.honest`, so rows with wrong images have no speed. This module does not know the page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..measure.record import ResultRow
from .columns import digits, interval

# Okabe and Ito's colors, which color-blind readers can distinguish; readable on white and on near black.
MAKERS = {"calotype": "#0072B2", "diffusers": "#E69F00", "torch-compile": "#D55E00", "optimum": "#009E73"}
MAKERS |= {"openvino-genai": "#56B4E9", "stable-diffusion.cpp": "#CC79A7"}
OTHERS = ("#8A8A00", "#8C6BB1", "#888888")
# Shades of gray blue for components: no maker has this color.
SHADES = ("#33475B", "#5F7A93", "#8FA6BA", "#BCCBD8", "#DDE5EB")
# Parts of an SVG file that a page does not need: metadata, styles, ids, fonts.
NEEDLESS = r'<metadata>.*?</metadata>|<style.*?</style>| id="[a-z]+[\w.]*_\w+"|font-family:[^;\"]*;? ?'
INK, GRID = "#010203", "#040506"  # placeholders for the page's colors
SETTINGS = {
    **{"svg.fonttype": "none", "svg.hashsalt": "calotype"},  # a salt makes the ids deterministic
    **{"font.size": 9, "figure.dpi": 72, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True},
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), GRID),
}


def colors(rows: Sequence[ResultRow]) -> dict[str, str]:
    """Return a color for each maker. Known makers have the same color in every run."""
    makers = list(dict.fromkeys(row.maker for row in rows))
    others = [maker for maker in makers if maker not in MAKERS]
    return {m: MAKERS[m] if m in MAKERS else OTHERS[min(others.index(m), len(OTHERS) - 1)] for m in makers}


def draw(rows: Sequence[ResultRow], color: Mapping[str, str]) -> dict[str, str]:
    """Return the plots that have something to show, by name."""
    import matplotlib

    with matplotlib.rc_context(SETTINGS):
        drawn = {
            "latency": _latency(rows, color),
            "quality": _quality(rows, color),
            "memory": _memory(rows, color),
            "components": _components(rows),
        }
    return {name: svg for name, svg in drawn.items() if svg}


def _latency(rows: Sequence[ResultRow], color: Mapping[str, str]) -> str:
    """Draw bars of the median with p10 to p90, and the ratio to the base with its interval."""
    if not any(row.speed for row in rows):
        return ""
    figure, (left, right) = _bars(rows, 11.0, columns=2)
    edges = [1.0]
    for y, row in enumerate(rows):
        speed, ratio, maker = row.speed, row.ratio, color[row.maker]
        if speed is None:
            status = "wrong images" if row.status == "wrong" else row.status
            _annotate(left, 0, y, f"{status}: no speed", style="italic")
            continue
        left.barh(y, speed.median_s, color=maker, height=0.66)
        left.plot([speed.p10_s, speed.p90_s], [y, y], color=INK, linewidth=1.4, marker="|", markersize=6)
        disturbed = f" ({row.disturbed_rounds} rounds disturbed)" if row.disturbed_rounds else ""
        _annotate(left, speed.p90_s, y, digits(speed.median_s) + disturbed)
        if ratio is None or ratio.verdict == "base":
            _annotate(right, 1, y, "base" if ratio else "", style="italic")
            continue
        low, high = ratio.low or ratio.median, ratio.high or ratio.median
        edges += [low, high]
        right.plot([low, high], [y, y], color=maker, linewidth=5, solid_capstyle="butt")
        right.plot([ratio.median], [y], marker="|", color=INK, markersize=9, markeredgewidth=1.4)
        between = f" ({interval(ratio)})" if interval(ratio) else ""
        _annotate(right, high, y, f"{ratio.median:.2f}x{between} {ratio.verdict}")
    left.set_xlim(0, max(row.speed.p90_s for row in rows if row.speed) * 1.18)
    left.set_xlabel("seconds for an image (or batch): median, line from p10 to p90; less is better")
    right.axvline(1, color=INK, linewidth=0.8)
    right.set_xlabel("speed relative to the base, 95 % interval; more is better")
    spread = max(edges) - min(edges)
    right.set_xlim(min(edges) - 0.08 * spread - 0.05, max(edges) + 0.6 * spread + 0.05)  # room for the text
    return _svg(figure)


def _quality(rows: Sequence[ResultRow], color: Mapping[str, str]) -> str:
    """Draw images a second against PSNR, with the names in a column on the right, in the order of the points."""
    shown = [(r, r.speed.images_per_s, r.quality.psnr_db) for r in rows if r.speed and r.quality]
    if not shown:
        return ""
    figure, axes = _figure(11.0, max(4.4, 0.22 * len(shown) + 1))
    axes.grid(True, linewidth=0.5)
    rates, levels = [x for _, x, _ in shown], [y for _, _, y in shown]
    if max(rates) > 8 * min(rates):
        axes.set_xscale("log")
    for row, x, y in shown:
        axes.plot([x], [y], marker="o", markersize=7, color=color[row.maker], markeredgecolor=INK, markeredgewidth=0.6)
    axes.margins(x=0.12)
    axes.set_ylim(min(levels) - 6, max(*levels, min(levels) + 10) + 8)
    axes.set_xlabel("images/s; more is better")
    axes.set_ylabel("PSNR to float32 eager, dB; more is better")
    heights = np.linspace(0.97, 0.03, len(shown)) if len(shown) > 1 else [0.5]
    line = {"arrowstyle": "-", "linewidth": 0.8, "alpha": 0.8, "shrinkA": 0, "shrinkB": 4, "relpos": (0, 0.5)}
    place = {"textcoords": "axes fraction", "va": "center", "ha": "left", "fontsize": 8}
    for (row, x, y), height in zip(sorted(shown, key=lambda point: -point[2]), heights, strict=True):
        arrow = {**line, "color": color[row.maker]}
        axes.annotate(row.contender, (x, y), xytext=(1.03, height), arrowprops=arrow, **place)
    return _svg(figure)


def _memory(rows: Sequence[ResultRow], color: Mapping[str, str]) -> str:
    """Draw the peak memory of the host, and of the device if there is one."""
    shown = [row for row in rows if row.host_peak_bytes or row.device_peak_bytes]
    if not shown:
        return ""
    figure, axes = _bars(shown, 7.0)
    device = any(row.device_peak_bytes for row in shown)
    style: dict[str, Any] = {"height": 0.36 if device else 0.66}
    for y, row in enumerate(shown):
        maker, host, on_device = color[row.maker], row.host_peak_bytes, row.device_peak_bytes
        for place, count, more in ((y - 0.2 * device, host, {}), (y + 0.2, on_device, {"hatch": "////"})):
            if count:
                axes.barh(place, count / 2**30, color=maker, edgecolor=INK if more else maker, **style, **more)
                _annotate(axes, count / 2**30, place, f"{count / 2**30:.2f}")
    axes.margins(x=0.16)
    axes.set_xlim(left=0)
    axes.set_xlabel("peak memory, GiB; " + ("plain: host, hatched: device; " if device else "") + "less is better")
    return _svg(figure)


def _components(rows: Sequence[ResultRow]) -> str:
    """Draw the time of an image by component. The rest of the median is the loop, the host and the copies."""
    shown = [row for row in rows if row.speed and row.parts]
    if not shown:
        return ""
    names = list(dict.fromkeys(name for row in shown for name in row.parts))
    shades = {name: SHADES[i % len(SHADES)] for i, name in enumerate(names)} | {"the rest": "none"}
    parts = np.array([[row.parts[n].median_s if n in row.parts else 0.0 for n in names] for row in shown])
    totals = np.array([row.speed.median_s for row in shown if row.speed])
    figure, axes = _bars(shown, 7.0, extra=0.5)
    style: dict[str, Any] = {"height": 0.66, "edgecolor": INK, "linewidth": 0.6}
    for i, (name, shade) in enumerate(shades.items()):
        before = parts[:, :i].sum(axis=1)
        # The rest is never negative: medians need not add up.
        seconds = parts[:, i] if i < len(names) else np.maximum(0, totals - before)
        axes.barh(range(len(shown)), seconds, left=before, color=shade, label=name.replace("_", " "), **style)
    axes.margins(x=0.02)
    axes.set_xlabel("seconds for an image (or batch)")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(shades), frameon=False, fontsize=8)
    return _svg(figure)


def frontier(series: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str) -> bytes:
    """Draw one line for each series of points, with its name at its end, as a PNG on white.

    Args:
        series: The points of each line, by its name.
        x, y: The words at the axes.
    """
    import matplotlib

    palette = [*MAKERS.values(), *OTHERS]
    with matplotlib.rc_context({**SETTINGS, "grid.color": "#DDDDDD", "axes.edgecolor": "#888888"}):
        figure, axes = _figure(8.0, 4.8)
        axes.grid(True, linewidth=0.5)
        for i, (name, points) in enumerate(series.items()):
            ordered = sorted(points)
            style = {"color": palette[i % len(palette)], "linewidth": 2.2 if i == 0 else 1.2}
            axes.plot(*zip(*ordered, strict=True), marker="o", markersize=4, label=name, **style)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if all(float(point[0]).is_integer() for points in series.values() for point in points):
            axes.locator_params(axis="x", integer=True)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=100, facecolor="white", metadata={"Software": None})
    return out.getvalue()


def _annotate(axes: Any, x: float, y: float, words: str, **more: Any) -> None:
    """Write to the right of a point, with an offset in place of spaces, because a page would drop them."""
    axes.annotate(words, (x, y), xytext=(7, 0), textcoords="offset points", va="center", **more)


def _figure(width: float, height: float, **layout: Any) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(**layout)


def _bars(rows: Sequence[ResultRow], width: float, columns: int = 1, extra: float = 0.0) -> tuple[Any, Any]:
    """Return a figure with a line for each row, the first on top."""
    layout = {"ncols": columns, "sharey": columns > 1, "width_ratios": [1.25, 1][:columns]}
    figure, axes = _figure(width, 0.3 * len(rows) + 0.75 + extra, **layout)
    for one in figure.axes:
        one.grid(True, axis="x", linewidth=0.5)
        one.tick_params(axis="y", length=0)
    figure.axes[0].set_yticks(range(len(rows)), [row.contender for row in rows])
    figure.axes[0].set_ylim(len(rows) - 0.4, -0.6)
    return figure, axes


def _svg(figure: Any) -> str:
    """Return the figure without what a file of its own needs: prologue, URLs, fonts, names, a fixed size."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = re.sub(NEEDLESS, "", out.getvalue()[out.getvalue().index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"<[^>]+>", lambda tag: re.sub(r"\d+\.\d{3,}", lambda n: f"{float(n[0]):.2f}", tag[0]), text)
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img">', text, count=1)
    return re.sub(r"\s+", " ", text).replace(INK, "currentColor").replace(GRID, "var(--grid)")
