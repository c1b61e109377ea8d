"""A run as one HTML page that opens from disk and fetches nothing. The template is `page.html.j2`.

The page shows the images of a case next to those of float32 eager. Differences and PSNR are computed from the kept
images; the shown ones are scaled down and compressed.

jinja2 and matplotlib come with the extra `bench`, and are imported when a page is written.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calotype.backends.base import missing_packages
from calotype.errors import InputError
from calotype.export.quality.metrics import psnr

from ..measure.record import ResultRow, RunRecord
from .columns import COLUMNS, by_case, digits, facts, filled, interval, peaks_of, why

IMAGES_SHOWN = 2  # for each contender
LARGEST = 192  # pixels each way, as shown
FACTOR = 16  # shows a difference of one level of 255 as 16
GRAYS = 8  # levels of a difference map; noise with more levels does not compress
Pixels = NDArray[np.uint8]  # [H, W, 3]


def write_page(recorded: RunRecord, path: Path) -> Path:
    """Write the page to a file."""
    text = page(recorded)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def page(recorded: RunRecord) -> str:
    """Return the text of the page. Raises `InputError` without the extra `bench`."""
    if reason := missing_packages("bench", "jinja2", "matplotlib"):
        raise InputError(f"cannot write the page of a run: {reason}.")
    import jinja2

    template = files("calotype.benchmarks.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    settings: dict[str, Any] = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, **settings)
    environment.globals |= {"why": why, "digits": digits, "share": "{:.0%}".format, "factor": FACTOR}
    return environment.from_string(template).render(
        run=recorded.run,
        facts=facts(recorded.run),
        peaks=peaks_of(recorded.run),
        versions=_versions(recorded),
        sections=_sections(recorded),
        columns=[column for column in COLUMNS.values() if not column.is_text],
    )


def _sections(recorded: RunRecord) -> list[dict[str, Any]]:
    from markupsafe import Markup

    from . import plots

    colors = plots.colors(recorded.rows)
    return [
        {
            "anchor": f"case-{number}",
            "title": title,
            "headline": headline(rows),
            "rows": rows,
            "colors": {maker: colors[maker] for maker in dict.fromkeys(row.maker for row in rows)},
            "figures": {name: Markup(svg) for name, svg in plots.draw(rows, colors).items()},
            "grid": build_grid(recorded, rows, IMAGES_SHOWN),
            "columns": filled(rows),
        }
        for number, (title, rows) in enumerate(by_case(recorded), 1)
    ]


def headline(rows: Sequence[ResultRow]) -> str:
    """Describe the fastest row with correct images, relative to the base, in one sentence."""
    timed = [(row, row.speed) for row in rows if row.speed]
    if not timed:
        return "No contender has a speed in this case."
    # Prefer the ratio: groups of contenders ran at different times, so their seconds are less comparable.
    best, speed = min(timed, key=lambda pair: (-pair[0].ratio.median if pair[0].ratio else 0.0, pair[1].median_s))
    text, ratio, between = f"{best.contender}, {digits(speed.median_s)} s", best.ratio, interval(best.ratio)
    if ratio is None or ratio.verdict == "base":
        details = "; it is the base" if ratio else ""
    elif between is None:
        details = f", {ratio.median:.2f} times as fast as {ratio.base}; too few rounds for an interval"
    elif ratio.verdict == "level":
        details = f", level with {ratio.base} ({between} times as fast)"
    else:
        details = f", {ratio.median:.2f} times as fast as {ratio.base} ({between})"
    return f"Fastest with correct images: {text}{details}."


def _versions(recorded: RunRecord) -> dict[str, Mapping[str, str]]:
    """Return the versions of the run's tools, and those of each maker that differ."""
    by_maker: dict[str, Mapping[str, str]] = {"this run": recorded.run.versions}
    for row in recorded.rows:
        other = {n: v for n, v in row.versions.items() if recorded.run.versions.get(n) != v}
        if other and other not in by_maker.values():
            by_maker[row.maker if row.maker not in by_maker else row.contender] = other
    return {who: versions for who, versions in by_maker.items() if versions}


def build_grid(recorded: RunRecord, rows: Sequence[ResultRow], count: int) -> list[dict[str, Any]]:
    """Return the reference first, then every contender with images, in the order of the run.

    An entry has a contender, a maker, a status, and for each image the data URLs `image` and `difference` and a
    `caption`. The reference and images of another size have no difference.
    """
    references = [_pixels(path) for path in recorded.reference(rows[0])[:count]]
    shown = [{"image": _address(Image.fromarray(r), "WEBP"), "difference": "", "caption": ""} for r in references]
    entries = [{"contender": "float32 eager", "maker": "", "status": "reference", "images": shown}]
    for row in rows:
        images = [_pixels(path) for path in recorded.images(row)[:count]]
        compared = [_compared(got, references[i] if i < len(references) else None) for i, got in enumerate(images)]
        entries.append({"contender": row.contender, "maker": row.maker, "status": row.status, "images": compared})
    return [entry for entry in entries if entry["images"]]


def _pixels(path: Path) -> Pixels:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _compared(got: Pixels, expected: Pixels | None) -> dict[str, str]:
    difference, caption = "", "no reference image"
    if expected is not None and got.shape != expected.shape:
        caption = f"{got.shape[1]} × {got.shape[0]} px, the reference {expected.shape[1]} × {expected.shape[0]}"
    elif expected is not None:
        decibel = psnr(got, expected, 255.0)
        difference, caption = _difference(got, expected), "equal" if np.isinf(decibel) else f"{decibel:.1f} dB"
    return {"image": _address(Image.fromarray(got), "WEBP"), "difference": difference, "caption": caption}


def _difference(got: Pixels, expected: Pixels) -> str:
    """Return the largest difference of the three channels, times FACTOR; equal pixels are black."""
    far = np.abs(got.astype(np.int16) - expected.astype(np.int16)).max(axis=2) * FACTOR
    small = np.asarray(_small(Image.fromarray(np.minimum(far, 255).astype(np.uint8))))
    # Round up, so that a small difference is not black.
    gray = Image.fromarray(np.ceil(small / (256 / GRAYS)).clip(0, GRAYS - 1).astype(np.uint8))
    gray.putpalette([value * 255 // (GRAYS - 1) for value in range(GRAYS) for _ in range(3)])
    return _address(gray, "PNG")


def _small(image: Image.Image) -> Image.Image:
    if max(image.size) > LARGEST:
        image.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    return image


def _address(image: Image.Image, kind: str) -> str:
    out = io.BytesIO()
    _small(image).save(out, kind, **({"optimize": True} if kind == "PNG" else {"quality": 90, "method": 4}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"
