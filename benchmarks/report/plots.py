"""Plots of a case as SVG for a page. Each maker has one color; text and lines take the color of the page.

Every function takes the rows of one case, in the order of the run, and returns "" if there is nothing to show. The rows
come from `table_columns.honest`, so rows with wrong images have no speed. This module does not know the page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..measure.record import ResultRow, Speed
from .labels import label
from .table_columns import digits, interval

# Okabe and Ito's colors, which color-blind readers can distinguish; readable on white and on near black.
MAKERS = {"calotype": "#0072B2", "diffusers": "#E69F00", "torch-compile": "#D55E00", "optimum": "#009E73"}
MAKERS |= {"openvino-genai": "#56B4E9", "stable-diffusion.cpp": "#CC79A7"}
OTHERS = ("#8A8A00", "#8C6BB1", "#888888")
# Shades of gray blue for components: no maker has this color.
SHADES = ("#33475B", "#5F7A93", "#8FA6BA", "#BCCBD8", "#DDE5EB")
REST = "the rest"
# Parts of an SVG file that a page does not need: metadata, styles, ids, fonts.
NEEDLESS = (
    r"<metadata>.*?</metadata>",
    r"<style.*?</style>",
    r' id="[a-z]+[\w.]*_\w+"',
    r"font-family:[^;\"]*;? ?",
)
INK, GRID = "#010203", "#040506"  # placeholders for the page's colors
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "calotype",  # makes the ids deterministic
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.edgecolor": GRID,
    "grid.color": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.dpi": 72,
}


def colors(rows: Sequence[ResultRow]) -> dict[str, str]:
    """Return a color for each maker. Known makers have the same color in every run."""
    makers = list(dict.fromkeys(row.maker for row in rows))
    strange = [maker for maker in makers if maker not in MAKERS]
    return {m: MAKERS[m] if m in MAKERS else OTHERS[min(strange.index(m), len(OTHERS) - 1)] for m in makers}


def latency(rows: Sequence[ResultRow], color: Mapping[str, str]) -> str:
    """Draw bars of the median with p10 to p90, and the ratio to the base with its interval."""
    if not any(row.speed for row in rows):
        return ""
    with _drawing():
        figure, (left, right) = _axes(len(rows), 11.0, columns=2)
        _names(left, rows)
        for y, row in enumerate(rows):
            if row.speed is None:
                status = "wrong images" if row.status == "wrong" else row.status
                _annotate(left, 0, y, f"{status}: no speed", style="italic")
                continue
            _bar(left, y, row.speed, color[row.maker], row.disturbed_rounds)
            _against(right, y, row, color[row.maker])
        left.set_xlim(0, max(row.speed.p90_s for row in rows if row.speed) * 1.18)
        left.set_xlabel("seconds for an image (or batch): median, line from p10 to p90; less is better")
        right.axvline(1, color=INK, linewidth=0.8)
        right.set_xlabel("speed relative to the base, 95 % interval; more is better")
        ends = [row.ratio.high or row.ratio.median for row in rows if row.ratio]
        starts = [row.ratio.low or row.ratio.median for row in rows if row.ratio]
        low, high = min([1.0, *starts]), max([1.0, *ends])
        right.set_xlim(low - 0.08 * (high - low) - 0.05, high + 0.6 * (high - low) + 0.05)  # room for the text
        return _svg(figure)


def _bar(axes: Any, y: int, speed: Speed, color: str, disturbed: int) -> None:
    axes.barh(y, speed.median_s, color=color, height=0.66)
    axes.plot([speed.p10_s, speed.p90_s], [y, y], color=INK, linewidth=1.4, marker="|", markersize=6)
    _annotate(axes, speed.p90_s, y, digits(speed.median_s) + (f" ({disturbed} rounds disturbed)" if disturbed else ""))


def _against(axes: Any, y: int, row: ResultRow, color: str) -> None:
    if row.ratio is None:
        return
    low, high = row.ratio.low, row.ratio.high
    if row.ratio.verdict == "base":
        _annotate(axes, 1, y, "base", style="italic")
        return
    if low is not None and high is not None:
        axes.plot([low, high], [y, y], color=color, linewidth=5, solid_capstyle="butt")
    axes.plot([row.ratio.median], [y], marker="|", color=INK, markersize=9, markeredgewidth=1.4)
    between = interval(row.ratio)
    text = f"{row.ratio.median:.2f}x" + (f" ({between})" if between else "") + f" {row.ratio.verdict}"
    _annotate(axes, row.ratio.median if high is None else high, y, text)


def _annotate(axes: Any, x: float, y: float, words: str, **more: Any) -> None:
    """Write to the right of a point, with an offset in place of spaces, because a page would drop them."""
    axes.annotate(words, (x, y), xytext=(7, 0), textcoords="offset points", va="center", **more)


def quality(rows: Sequence[ResultRow], color: Mapping[str, str]) -> str:
    """Draw images a second against PSNR: up and to the right is better."""
    shown = [(r, r.speed.images_per_s, r.quality.psnr_db) for r in rows if r.speed and r.quality]
    if not shown:
        return ""
    with _drawing():
        figure, axes = _axes(0, 11.0, height=4.4)
        axes.grid(True, linewidth=0.5)
        rates, levels = [x for _, x, _ in shown], [y for _, _, y in shown]
        if max(rates) > 8 * min(rates):
            axes.set_xscale("log")
        for row, x, y in shown:
            axes.plot(
                [x], [y], marker="o", markersize=7, color=color[row.maker], markeredgecolor=INK, markeredgewidth=0.6
            )
        axes.margins(x=0.12)
        axes.set_ylim(min(levels) - 6, max(*levels, min(levels) + 10) + 8)
        axes.set_xlabel("images/s; more is better")
        axes.set_ylabel("PSNR to float32 eager, dB; more is better")
        label(figure, axes, [(row.contender, x, y) for row, x, y in shown])
        return _svg(figure)


def memory(rows: Sequence[ResultRow], color: Mapping[str, str]) -> str:
    """Draw the peak memory of the host, and of the device if there is one."""
    shown = [row for row in rows if row.host_peak_bytes or row.device_peak_bytes]
    if not shown:
        return ""
    with _drawing():
        figure, axes = _axes(len(shown), 7.0)
        _names(axes, shown)
        device = any(row.device_peak_bytes for row in shown)
        for y, row in enumerate(shown):
            _memory_bar(axes, y - 0.2 * device, row.host_peak_bytes, color[row.maker], device)
            _memory_bar(axes, y + 0.2, row.device_peak_bytes, color[row.maker], device, hatch="////")
        axes.margins(x=0.16)
        axes.set_xlim(left=0)
        axes.set_xlabel("peak memory, GiB; " + ("plain: host, hatched: device; " if device else "") + "less is better")
        return _svg(figure)


def _memory_bar(axes: Any, y: float, count: int | None, color: str, half: bool, hatch: str = "") -> None:
    if not count:
        return
    axes.barh(
        y, count / 2**30, color=color, height=0.36 if half else 0.66, hatch=hatch, edgecolor=INK if hatch else color
    )
    _annotate(axes, count / 2**30, y, f"{count / 2**30:.2f}")


def components(rows: Sequence[ResultRow]) -> str:
    """Draw the time of an image by component. The rest of the median is the loop, the host and the copies."""
    shown = [row for row in rows if row.speed and row.parts]
    if not shown:
        return ""
    names = list(dict.fromkeys(name for row in shown for name in row.parts))
    with _drawing():
        figure, axes = _axes(len(shown), 7.0, height=0.5)
        _names(axes, shown)
        for y, row in enumerate(shown):
            left = 0.0
            for name, seconds in _shares(row, names):
                shade = "none" if name == REST else SHADES[names.index(name) % len(SHADES)]
                axes.barh(y, seconds, left=left, color=shade, height=0.66, edgecolor=INK, linewidth=0.6)
                left += seconds
        axes.set_xlim(0, max(sum(s for _, s in _shares(row, names)) for row in shown) * 1.02)
        axes.set_xlabel("seconds for an image (or batch)")
        _legend(axes, names)
        return _svg(figure)


def _shares(row: ResultRow, names: Sequence[str]) -> list[tuple[str, float]]:
    """Return the seconds of every component and of the rest, which is never negative: medians need not add up."""
    parts = [(name, row.parts[name].median_s) for name in names if name in row.parts]
    total = row.speed.median_s if row.speed else 0.0
    return [*parts, (REST, max(0.0, total - sum(seconds for _, seconds in parts)))]


def _legend(axes: Any, names: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    shades = {name: SHADES[i % len(SHADES)] for i, name in enumerate(names)} | {REST: "none"}
    patches = [Patch(facecolor=s, edgecolor=INK, linewidth=0.6, label=n.replace("_", " ")) for n, s in shades.items()]
    axes.legend(
        handles=patches, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(patches), frameon=False, fontsize=8
    )


def _axes(bars: int, width: float, height: float = 0.0, columns: int = 1) -> tuple[Any, Any]:
    """Return a figure with one line for each bar, or of the requested height."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height + (0.3 * bars + 0.75 if bars else 0)), layout="constrained")
    axes = figure.subplots(1, columns, sharey=columns > 1, width_ratios=[1.25, 1] if columns == 2 else None)
    if bars:
        for one in axes if columns > 1 else [axes]:
            one.grid(True, axis="x", linewidth=0.5)
            one.tick_params(axis="y", length=0)
    return figure, axes


def _names(axes: Any, rows: Sequence[ResultRow]) -> None:
    axes.set_yticks(range(len(rows)), [row.contender for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)  # the first row on top


def _drawing() -> Any:
    import matplotlib

    return matplotlib.rc_context(SETTINGS)


def _svg(figure: Any) -> str:
    """Return the figure without what a file of its own needs: prologue, URLs, fonts, names, a fixed size."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()[out.getvalue().index("<svg") :]
    for needless in NEEDLESS:
        text = re.sub(needless, "", text, flags=re.DOTALL)
    text = re.sub(r"<[^>]+>", lambda tag: re.sub(r"\d+\.\d{3,}", _hundredths, tag.group()), text)
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img">', text, count=1)
    return re.sub(r"\s+", " ", text).replace(INK, "currentColor").replace(GRID, "var(--grid)")


def _hundredths(number: re.Match[str]) -> str:
    return f"{float(number.group()):.2f}"
