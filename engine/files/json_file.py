"""JSON files of strangers: regular files of a bounded size and depth, so that reading one always ends.

Knows nothing of what a file is for; `what` says it in the error.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import SourceError

_MAX_DEPTH = 100  # no file of a model comes near, and code that walks or writes the data recursively stays safe


def read_text(path: Path, what: str, *, limit_bytes: int = 64 << 20) -> str:
    """The text of a file. Raises `SourceError` as `read_json` does."""
    try:
        return _read_regular(path, limit_bytes).decode("utf-8")
    except FileNotFoundError:
        raise SourceError(f"{path} is missing; {what}.") from None
    except OSError as failed:
        raise SourceError(f"{path} cannot be read ({failed.strerror or failed}); {what}.") from None
    except ValueError as broken:  # not UTF-8, or a path with a null character
        raise SourceError(f"{path} cannot be read ({broken}); {what}.") from None


def read_json(path: Path, what: str, *, limit_bytes: int = 64 << 20) -> dict[str, Any]:
    """The object in a JSON file. Raises `SourceError` that names the path and ends with `what` the file is for."""
    try:
        data = json.loads(read_text(path, what, limit_bytes=limit_bytes))
    except RecursionError:
        raise SourceError(f"{path} nests deeper than {_MAX_DEPTH} levels; {what}.") from None
    except ValueError as broken:
        raise SourceError(f"{path} cannot be read ({broken}); {what}.") from None
    if not isinstance(data, dict):
        raise SourceError(f"{path} holds JSON, but not an object; {what}.")
    if _depth(data) > _MAX_DEPTH:
        raise SourceError(f"{path} nests deeper than {_MAX_DEPTH} levels; {what}.")
    return data


def _read_regular(path: Path, limit_bytes: int) -> bytes:
    """The bytes of a regular file. A pipe or a device is refused before it could block, and checked again once open."""
    _check_regular(path, os.stat(path), limit_bytes)
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        _check_regular(path, os.fstat(file.fileno()), limit_bytes)
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:  # it grew meanwhile, or its file system does not say its size
        raise OSError(0, f"it is larger than {limit_bytes} bytes")
    return data


def _check_regular(path: Path, status: os.stat_result, limit_bytes: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(0, "it is not a regular file", str(path))
    if status.st_size > limit_bytes:
        raise OSError(0, f"it is {status.st_size} bytes long; at most {limit_bytes} are read", str(path))


def _depth(data: object) -> int:
    """How deep lists and objects nest. Works level by level, without recursion."""
    depth, level = 0, [data]
    while level:
        level = [child for node in level for child in _children(node) if isinstance(child, (dict, list))]
        depth += 1
    return depth


def _children(node: Any) -> Iterable[object]:
    return node.values() if isinstance(node, dict) else node
