"""Local models that the user has loaded on this machine: the metadata of an image may select only one of these.

A record is an empty file, named by the digest of the model's absolute path. So a lookup does not touch a path from a
stranger's image: no network share, no device, no home folder.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from ..errors import SourceError
from .paths import home, write_atomic

SHIPPED = "demo"
_SHIPPED_FOLDER = Path(__file__).parent.parent / "demo_model"


def remember_model(model: str) -> None:
    """Record that the user loaded this model, if it is a local folder or file."""
    with suppress(OSError, RuntimeError, ValueError, SourceError):  # a lost record does not fail the generation
        path = Path(model).expanduser()
        if path.exists() and not is_known(str(path)):
            write_atomic(_record(str(path)), b"")


def is_known(model: str) -> bool:
    """Tell whether it is the model that ships with Calotype, or a local one that the user has loaded before."""
    return model in (SHIPPED, str(_SHIPPED_FOLDER)) or _record(model).exists()


def _record(model: str) -> Path:
    path = os.path.abspath(model)
    return home() / "known" / hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()
