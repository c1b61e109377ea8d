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
        fault = f"{path} is missing"
    except OSError as failed:
        fault = f"cannot read {path} ({failed.strerror or failed})"
    except ValueError as error:  # not UTF-8, or a path with a null character
        fault = f"cannot read {path} ({error})"
    raise SourceError(f"{fault}; {purpose}.", path=path)


def read_json(path: Path, purpose: str, *, limit_bytes: int = 64 << 20) -> dict[str, Any]:
    """Return the object in a JSON file. Raises `SourceError` with the path and the `purpose` of the file."""
    text = read_text(path, purpose, limit_bytes=limit_bytes)
    try:
        data = json.loads(text)
        if isinstance(data, dict) and _depth(data) <= _MAX_DEPTH:
            return data
        deep = isinstance(data, dict)
        fault = f"{path} nests deeper than {_MAX_DEPTH} levels" if deep else f"{path} does not hold a JSON object"
    except RecursionError:
        fault = f"{path} nests deeper than {_MAX_DEPTH} levels"
    except ValueError as error:
        fault = f"cannot read {path} ({error})"
    raise SourceError(f"{fault}; {purpose}.", path=path)


def _read_regular(path: Path, limit_bytes: int) -> bytes:
    """Return the bytes of a regular file. Checks before opening, which could block on a pipe, and again afterwards."""

    def check(status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "it is not a regular file", str(path))
        if status.st_size > limit_bytes:
            raise OSError(0, f"it has {status.st_size} bytes; the limit is {limit_bytes}", str(path))

    check(os.stat(path))
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        check(os.fstat(file.fileno()))
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:  # it grew, or its file system reports no size
        raise OSError(0, f"it has more than {limit_bytes} bytes")
    return data


def _depth(data: Any) -> int:
    """Return how deep lists and objects nest. Works level by level, without recursion."""
    depth, level = 0, [data]
    while level:
        children = (child for node in level for child in (node.values() if isinstance(node, dict) else node))
        level = [child for child in children if isinstance(child, (dict, list))]
        depth += 1
    return depth
