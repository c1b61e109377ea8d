"""Models that the user named on this machine before: a picture may ask for one of these again, and for no other.

A record is an empty file under the digest of the model's absolute path, so that looking one up touches nothing that a
stranger's picture names: no network share, no device, no home folder.
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
    """Note that the user named this model, where it is a folder or a file of this machine."""
    with suppress(OSError, RuntimeError, ValueError, SourceError):  # the note is lost, and the picture is there
        path = Path(model).expanduser()
        if path.exists() and not is_known(str(path)):
            write_atomic(_record(str(path)), b"")


def is_known(model: str) -> bool:
    """Is it the model that ships with Calotype, or a local one that the user named before?"""
    return model in (SHIPPED, str(_SHIPPED_FOLDER)) or _record(model).exists()


def _record(model: str) -> Path:
    path = os.path.abspath(model)
    return home() / "known" / hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()
