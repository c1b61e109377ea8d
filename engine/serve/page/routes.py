"""The routes of the page. The files are read once; a request only chooses one of them by its name."""

from __future__ import annotations

import hashlib
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# Nothing but this server's own files runs or is loaded; images are also those that the page holds in memory.
_POLICY = "; ".join(
    (
        *("default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' blob: data:"),
        *("connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # ask each time, and get 304 while nothing changed
}


def routes() -> list[Route]:
    """Return the routes of the page and its files."""
    folder = resources.files(__package__).joinpath("static")
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    return [
        _route("/", "index.html", files["index.html"]),
        *(_route(f"/page/{name}", name, content) for name, content in files.items() if name != "index.html"),
    ]


def _route(path: str, name: str, content: bytes) -> Route:
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**_HEADERS, "ETag": tag}
    kind = _TYPES[name[name.rindex(".") :]]

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    return Route(path, answer)
