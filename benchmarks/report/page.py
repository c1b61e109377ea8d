"""A run as one HTML page that opens from disk: nothing in it is fetched. The template beside this file is its looks.

jinja2 and matplotlib come with the extra `bench` and are imported when a page is made.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from calotype.errors import InputError

from ..measure.record import Recorded, Row, Run
from . import picture_grid as gallery
from .table_columns import COLUMNS, Column, by_case, digits, filled, interval, rate, size, why

PICTURES = 2  # of each contender
PAGE_FILE = "report.html"


@dataclass(frozen=True, kw_only=True)
class Section:
    """One case, as the template takes it."""

    anchor: str
    title: str
    headline: str
    rows: tuple[Row, ...]
    colors: Mapping[str, str]
    figures: Mapping[str, str]  # SVG
    hung: tuple[gallery.Hung, ...]
    columns: tuple[Column, ...]


def write_page(recorded: Recorded, path: Path) -> Path:
    """The page, as a file. Raises `InputError` where the extra `bench` is missing."""
    text = page(recorded)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def page(recorded: Recorded, *, pictures: int = PICTURES) -> str:
    """The page's text; `pictures` of each contender at most."""
    _need("jinja2", "matplotlib")
    import jinja2

    template = files("calotype.benchmarks.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    settings = {"autoescape": True, "undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(**settings)  # type: ignore[arg-type]
    environment.globals |= {"why": why, "digits": digits, "share": "{:.0%}".format, "factor": gallery.FACTOR}
    return environment.from_string(template).render(
        run=recorded.run,
        facts=facts(recorded.run),
        peaks=_peaks(recorded.run),
        versions=_versions(recorded),
        sections=_sections(recorded, pictures),
        tells=[column for column in COLUMNS.values() if not column.words],
    )


def _need(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        told = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
        raise InputError(f"the page of a run cannot be made: {told}; pip install 'calotype[bench]'.")


def _sections(recorded: Recorded, pictures: int) -> list[Section]:
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
        made = Section(
            anchor=f"case-{number}",
            title=title,
            headline=headline(rows),
            rows=rows,
            colors={maker: colors[maker] for maker in dict.fromkeys(row.maker for row in rows)},
            figures={name: Markup(svg) for name, svg in drawn.items() if svg},
            hung=gallery.hang(recorded, rows, pictures),
            columns=tuple(filled(rows, tuple(COLUMNS))),
        )
        sections.append(made)
    return sections


def headline(rows: tuple[Row, ...]) -> str:
    """The fastest row whose pictures are right, against the base, in a sentence."""
    timed = [(row, row.speed) for row in rows if row.speed]
    if not timed:
        return "No contender has a speed at this case."
    # By the ratio, where there is one: seconds of races in groups were taken at different times.
    best, speed = min(timed, key=lambda pair: (-pair[0].ratio.median if pair[0].ratio else 0.0, pair[1].median_s))
    told = f"Fastest with right pictures: {best.contender}, {digits(speed.median_s)} s"
    ratio = best.ratio
    if ratio is None or ratio.verdict == "base":
        return told + ("; it is the base." if ratio else ".")
    between = interval(ratio)
    if between is None:
        return f"{told}, {ratio.median:.2f} times as fast as {ratio.base}; the rounds are too few to be sure of it."
    if ratio.verdict == "level":
        return f"{told}, level with {ratio.base} ({between} times as fast)."
    return f"{told}, {ratio.median:.2f} times as fast as {ratio.base} ({between})."


def facts(run: Run) -> dict[str, str]:
    """The machine in words."""
    told = {"device": run.device, "threads": str(run.threads)}
    for name, value in run.machine.items():
        told[name.removesuffix("_bytes").replace("_", " ")] = _words(name, value)
    return {name: value for name, value in told.items() if value}


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


def _versions(recorded: Recorded) -> dict[str, Mapping[str, str]]:
    """The run's tools, and each maker's where they are others."""
    told: dict[str, Mapping[str, str]] = {"this run": recorded.run.versions}
    for row in recorded.rows:
        other = {n: v for n, v in row.versions.items() if recorded.run.versions.get(n) != v}
        if other and other not in told.values():
            told[row.maker if row.maker not in told else row.contender] = other
    return {who: versions for who, versions in told.items() if versions}
