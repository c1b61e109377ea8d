"""Errors of full or read-only disks as one message with the command that fixes them."""

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
def disk_errors_as_source_errors(root: Path, title: str) -> Iterator[None]:
    """Raise `SourceError` for system errors: of the store at `root`, or of a file that building `title` reads."""
    try:
        yield
    except OSError as failed:
        path = failed.filename
        if failed.errno in _FULL:
            message = no_space_message(root, title, str(failed.strerror), 0)
        elif isinstance(path, str) and not (Path(path).is_relative_to(root) or root.is_relative_to(path)):
            message = f"cannot build {title}: {path}: {failed.strerror}."
        else:
            message = (
                f"the store {root} cannot be written ({failed.strerror or failed}), so {title} cannot be built. "
                "Choose a writable folder with `export CALOTYPE_HOME=FOLDER`."
            )
        raise SourceError(message) from failed


def full_disk_reason(failed: BaseException | None) -> str:
    """Return the system's message if a full disk caused the error, else "". Libraries wrap it or keep only its text."""
    while failed is not None:
        for code in _FULL:
            if getattr(failed, "errno", None) == code or os.strerror(code) in str(failed):
                return os.strerror(code)
        failed = failed.__cause__ or failed.__context__
    return ""


def no_space_message(root: Path, title: str, reason: str, written_bytes: int) -> str:
    """Return the error message for a full disk."""
    from rich.filesize import decimal  # a slow import

    free = "an unknown amount"
    with suppress(OSError):
        free = decimal(shutil.disk_usage(root.parent).free)
    written = f" after {decimal(written_bytes)}, which were removed" if written_bytes else ""
    return (
        f"the store {root} has no space for {title}: {reason}{written}; {free} is free now. Free space with "
        "`calotype cache gc --max-size 10GB`, or choose a larger disk with `export CALOTYPE_HOME=FOLDER`."
    )
