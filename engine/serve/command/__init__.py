"""The command `calotype serve`, and its configuration."""

from .config import ServeConfig
from .serve import add_serve

__all__ = ["ServeConfig", "add_serve"]
