"""HTML for notebooks: a result with its images, and the report of a call. Every text is escaped."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

from ..errors.printable import printable

_SHOWN = 12  # images
_SIDE = 384  # pixels of the longer side
_CAPTION = 80  # characters


def images_as_html(images: Sequence[Any], seeds: Sequence[int]) -> str:
    """Return PIL images side by side, at most `_SHOWN`, with their seeds and prompts."""
    cells = [
        f'<figure style="display:inline-block;margin:4px"><img src="data:image/png;base64,{_png(image)}">'
        f"<figcaption>{_text(_caption(image, seed))}</figcaption></figure>"
        for image, seed in zip(images[:_SHOWN], seeds, strict=False)
    ]
    more = f"<p>and {len(images) - _SHOWN} more</p>" if len(images) > _SHOWN else ""
    return f"<div>{''.join(cells)}{more}</div>"


def _caption(image: Any, seed: int) -> str:
    prompt = image.info.get("prompt", "")
    return f"seed {seed}  {prompt[:_CAPTION]}{'…' if len(prompt) > _CAPTION else ''}"


def _png(image: Any) -> str:
    small, file = image.copy(), io.BytesIO()
    small.thumbnail((_SIDE, _SIDE))
    small.info.clear()  # no settings
    small.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def report_as_html(report: Any) -> str:
    """Return a `Report` as a table of its components, and a list of the rest."""
    rows = [
        (c.name, c.backend, c.precision, c.difference, "; ".join(filter(None, (c.why, c.precision_reason))))
        for c in report.components
    ]
    lines = [line for line in str(report).splitlines() if not line.startswith(tuple(f"{row[0]} " for row in rows))]
    texts = "".join(f"<li>{_text(line)}</li>" for line in lines)
    return f"{table_as_html(('component', 'backend', 'precision', 'difference', 'why'), rows)}<ul>{texts}</ul>"


def table_as_html(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    cells = [f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table><tr>{''.join(f'<th>{_text(name)}</th>' for name in head)}</tr>{''.join(cells)}</table>"


def paragraph_as_html(text: str) -> str:
    """Return a paragraph."""
    return f"<p>{_text(text)}</p>"


def _text(text: str) -> str:
    return html.escape(printable(text))
