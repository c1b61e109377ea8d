"""The page at `/`: static files, which use the JSON API of jobs. No build step, and no request to another host."""

from .routes import routes

__all__ = ["routes"]
