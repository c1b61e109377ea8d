"""What the system says of a disk that is full or may not be written, as one sentence with the command that mends it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from calotype.errors import SourceError

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def plainly(root: Path, what: str) -> Iterator[None]:
    """Tell system errors by whose file it was: the store's at `root`, or one that making `what` needs."""
    try:
        yield
    except OSError as failed:
        path = failed.filename
        if failed.errno in _FULL:
            told = no_room(root, what, str(failed.strerror), 0)
        elif isinstance(path, str) and not (Path(path).is_relative_to(root) or root.is_relative_to(path)):
            told = f"{what} cannot be made: {path}: {failed.strerror}."
        else:
            told = (
                f"the store {root} cannot be written ({failed.strerror or failed}), and {what} has to be made there; "
                "name a folder that you may write with `export CALOTYPE_HOME=FOLDER`."
            )
        raise SourceError(told) from failed


def full_disk(failed: BaseException | None) -> str:
    """The system's words, if a full disk made `make` fail: libraries wrap its error, or keep the words alone."""
    while failed is not None:
        for code in _FULL:
            if getattr(failed, "errno", None) == code or os.strerror(code) in str(failed):
                return os.strerror(code)
        failed = failed.__cause__ or failed.__context__
    return ""


def no_room(root: Path, what: str, said: str, written_bytes: int) -> str:
    """The sentence for a full disk."""
    from rich.filesize import decimal  # imported late: rich takes its time

    free = "an unknown amount"
    with suppress(OSError):
        free = decimal(shutil.disk_usage(root.parent).free)
    wrote = f" after {decimal(written_bytes)}, which are removed again" if written_bytes else ""
    return (
        f"the store {root} has no room for {what}: {said}{wrote}; {free} is free now, and it needs more; make room "
        "with `calotype cache gc --max-size 10GB`, or name a folder on a larger disk with "
        "`export CALOTYPE_HOME=FOLDER`."
    )
