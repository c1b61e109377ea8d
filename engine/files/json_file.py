"""Readers for JSON and text files from strangers: regular files of limited size and depth, so that reading always ends.

Knows nothing of a file's purpose: the argument `purpose` ends the error message.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from ..errors import SourceError

_MAX_DEPTH = 100  # far above the files of models, and safe for recursive code


def read_text(path: Path, purpose: str, *, limit_bytes: int = 64 << 20) -> str:
    """Return the text of a file. Raises `SourceError` like `read_json`."""
    try:
        return _read_regular(path, limit_bytes).decode("utf-8")
    except FileNotFoundError:
        raise SourceError(f"{path} is missing; {purpose}.") from None
    except OSError as failed:
        raise SourceError(f"cannot read {path} ({failed.strerror or failed}); {purpose}.") from None
    except ValueError as error:  # not UTF-8, or a path with a null character
        raise SourceError(f"cannot read {path} ({error}); {purpose}.") from None


def read_json(path: Path, purpose: str, *, limit_bytes: int = 64 << 20) -> dict[str, Any]:
    """Return the object in a JSON file. Raises `SourceError` with the path and the `purpose` of the file."""
    try:
        data = json.loads(read_text(path, purpose, limit_bytes=limit_bytes))
    except RecursionError:
        raise SourceError(f"{path} nests deeper than {_MAX_DEPTH} levels; {purpose}.") from None
    except ValueError as error:
        raise SourceError(f"cannot read {path} ({error}); {purpose}.") from None
    if not isinstance(data, dict):
        raise SourceError(f"{path} does not hold a JSON object; {purpose}.")
    if _depth(data) > _MAX_DEPTH:
        raise SourceError(f"{path} nests deeper than {_MAX_DEPTH} levels; {purpose}.")
    return data


def _read_regular(path: Path, limit_bytes: int) -> bytes:
    """Return the bytes of a regular file. Checks before opening, which could block on a pipe, and again afterwards."""
    _check_regular(path, os.stat(path), limit_bytes)
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        _check_regular(path, os.fstat(file.fileno()), limit_bytes)
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:  # it grew, or its file system reports no size
        raise OSError(0, f"it has more than {limit_bytes} bytes")
    return data


def _check_regular(path: Path, status: os.stat_result, limit_bytes: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(0, "it is not a regular file", str(path))
    if status.st_size > limit_bytes:
        raise OSError(0, f"it has {status.st_size} bytes; the limit is {limit_bytes}", str(path))


def _depth(data: Any) -> int:
    """Return how deep lists and objects nest. Works level by level, without recursion."""
    depth, level = 0, [data]
    while level:
        children = (child for node in level for child in (node.values() if isinstance(node, dict) else node))
        level = [child for child in children if isinstance(child, (dict, list))]
        depth += 1
    return depth
