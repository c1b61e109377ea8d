"""Where Calotype keeps what it made: `CALOTYPE_HOME`, or the user's cache folder."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from ..errors import SourceError


def home() -> Path:
    """The folder, which need not exist yet: $CALOTYPE_HOME, else $XDG_CACHE_HOME/calotype, else ~/.cache/calotype."""
    said, cache = os.environ.get("CALOTYPE_HOME"), os.environ.get("XDG_CACHE_HOME")
    try:
        if said:
            return Path(said).expanduser().absolute()
        return (Path(cache) if cache else Path.home() / ".cache") / "calotype"
    except RuntimeError as failed:  # no such user, or a user without a home
        raise SourceError(f"there is no place for the store ({failed}); set CALOTYPE_HOME to a folder.") from None


def write_atomic(path: Path, data: bytes) -> None:
    """Write so that no reader ever sees half a file: to a new name beside it, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        fresh.write_bytes(data)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
