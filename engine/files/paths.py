"""The folder of the cache: `CALOTYPE_HOME`, or the user's cache folder."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from ..errors import SourceError


def home() -> Path:
    """Return $CALOTYPE_HOME, $XDG_CACHE_HOME/calotype or ~/.cache/calotype. The folder may not exist yet."""
    configured, cache = os.environ.get("CALOTYPE_HOME"), os.environ.get("XDG_CACHE_HOME")
    try:
        if configured:
            return Path(configured).expanduser().absolute()
        return (Path(cache) if cache else Path.home() / ".cache") / "calotype"
    except RuntimeError as failed:  # no such user, or a user without a home
        raise SourceError(f"cannot find a cache folder ({failed}). Set CALOTYPE_HOME to a folder.") from None


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that readers never see a part of it: write to a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        fresh.write_bytes(data)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
