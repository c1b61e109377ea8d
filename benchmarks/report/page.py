"""A run as one HTML page that opens from disk and fetches nothing. The template is `page.html.j2`.

jinja2 and matplotlib come with the extra `bench`, and are imported when a page is written.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from calotype.errors import InputError

from ..measure.record import ResultRow, Run, RunRecord
from . import picture_grid
from .table_columns import COLUMNS, Column, by_case, digits, filled, interval, rate, size, why

IMAGES_SHOWN = 2  # for each contender
PAGE_FILE = "report.html"


@dataclass(frozen=True, kw_only=True)
class Section:
    """One case, as the template takes it."""

    anchor: str
    title: str
    headline: str
    rows: tuple[ResultRow, ...]
    colors: Mapping[str, str]
    figures: Mapping[str, str]  # SVG
    grid: tuple[picture_grid.GridEntry, ...]
    columns: tuple[Column, ...]


def write_page(recorded: RunRecord, path: Path) -> Path:
    """Write the page to a file. Raises `InputError` without the extra `bench`."""
    text = page(recorded)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def page(recorded: RunRecord, *, images: int = IMAGES_SHOWN) -> str:
    """Return the text of the page, with at most `images` images of each contender."""
    _need("jinja2", "matplotlib")
    import jinja2

    template = files("calotype.benchmarks.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    settings = {"autoescape": True, "undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(**settings)  # type: ignore[arg-type]
    environment.globals |= {"why": why, "digits": digits, "share": "{:.0%}".format, "factor": picture_grid.FACTOR}
    return environment.from_string(template).render(
        run=recorded.run,
        facts=facts(recorded.run),
        peaks=_peaks(recorded.run),
        versions=_versions(recorded),
        sections=_sections(recorded, images),
        columns=[column for column in COLUMNS.values() if not column.is_text],
    )


def _need(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        message = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
        raise InputError(f"cannot write the page of a run: {message}. Run pip install 'calotype[bench]'.")


def _sections(recorded: RunRecord, images: int) -> list[Section]:
    from markupsafe import Markup

    from . import plots

    colors = plots.colors(recorded.rows)
    sections = []
    for number, (title, rows) in enumerate(by_case(recorded), 1):
        drawn = {
            "latency": plots.latency(rows, colors),
            "quality": plots.quality(rows, colors),
            "memory": plots.memory(rows, colors),
            "components": plots.components(rows),
        }
        section = Section(
            anchor=f"case-{number}",
            title=title,
            headline=headline(rows),
            rows=rows,
            colors={maker: colors[maker] for maker in dict.fromkeys(row.maker for row in rows)},
            figures={name: Markup(svg) for name, svg in drawn.items() if svg},
            grid=picture_grid.build_grid(recorded, rows, images),
            columns=tuple(filled(rows, tuple(COLUMNS))),
        )
        sections.append(section)
    return sections


def headline(rows: tuple[ResultRow, ...]) -> str:
    """Describe the fastest row with correct images, relative to the base, in one sentence."""
    timed = [(row, row.speed) for row in rows if row.speed]
    if not timed:
        return "No contender has a speed in this case."
    # Prefer the ratio: groups of contenders ran at different times, so their seconds are less comparable.
    best, speed = min(timed, key=lambda pair: (-pair[0].ratio.median if pair[0].ratio else 0.0, pair[1].median_s))
    text = f"Fastest with correct images: {best.contender}, {digits(speed.median_s)} s"
    ratio = best.ratio
    if ratio is None or ratio.verdict == "base":
        return text + ("; it is the base." if ratio else ".")
    between = interval(ratio)
    if between is None:
        return f"{text}, {ratio.median:.2f} times as fast as {ratio.base}; too few rounds for an interval."
    if ratio.verdict == "level":
        return f"{text}, level with {ratio.base} ({between} times as fast)."
    return f"{text}, {ratio.median:.2f} times as fast as {ratio.base} ({between})."


def facts(run: Run) -> dict[str, str]:
    """Return the facts about the machine as text."""
    facts_by_name = {"device": run.device, "threads": str(run.threads)}
    for name, value in run.machine.items():
        facts_by_name[name.removesuffix("_bytes").replace("_", " ")] = _words(name, value)
    return {name: value for name, value in facts_by_name.items() if value}


def _words(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(key, inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_words(name, inner) for inner in value)
    if name.endswith("_bytes") and isinstance(value, int | float):
        return size(value)
    return "" if value is None else str(value)


def _peaks(run: Run) -> dict[str, str]:
    return {name: rate(peak, "B" if name == "copy" else "FLOP") for name, peak in run.peaks.items() if peak}


def _versions(recorded: RunRecord) -> dict[str, Mapping[str, str]]:
    """Return the versions of the run's tools, and those of each maker that differ."""
    by_maker: dict[str, Mapping[str, str]] = {"this run": recorded.run.versions}
    for row in recorded.rows:
        other = {n: v for n, v in row.versions.items() if recorded.run.versions.get(n) != v}
        if other and other not in by_maker.values():
            by_maker[row.maker if row.maker not in by_maker else row.contender] = other
    return {who: versions for who, versions in by_maker.items() if versions}
