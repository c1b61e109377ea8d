"""Where Calotype keeps what it made: `CALOTYPE_HOME`, or the user's cache folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def home() -> Path:
    """The folder, which need not exist yet: $CALOTYPE_HOME, else $XDG_CACHE_HOME/calotype, else ~/.cache/calotype."""
    said = os.environ.get("CALOTYPE_HOME")
    if said:
        return Path(said).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "calotype"


def write_whole(path: Path, data: bytes) -> None:
    """Write so that no reader ever sees half a file: to a new name beside it, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, fresh = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(data)
        os.replace(fresh, path)
    except BaseException:
        Path(fresh).unlink(missing_ok=True)
        raise
