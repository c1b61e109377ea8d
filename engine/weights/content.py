"""A digest of the values of weights: the same for a file, for its float32 copy, and for a module in memory."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..system import threads
from .safetensors import FLOATS, Floats, TensorFile

_OF_CLASS = re.compile(r"^(text|vision)_model\.")  # transformers' modules have it in their names or not


def content_digest(names: Iterable[str], read: Callable[[str], Floats]) -> str:
    """Return the SHA-256 of the names, the shapes and the values in float32 of all tensors, in any order.

    Args:
        names: the names of the tensors.
        read: returns a tensor by its name. Threads call it.
    """

    def one(name: str) -> bytes:
        array = np.ascontiguousarray(read(name), np.float32)
        described = f"{_OF_CLASS.sub('', name)} {list(array.shape)} ".encode()
        return described + hashlib.sha256(array.reshape(-1).view(np.uint8).data).digest()

    with ThreadPoolExecutor(threads.available()) as pool:
        return hashlib.sha256(b"".join(sorted(pool.map(one, names)))).hexdigest()


def content_digest_of_files(files: Iterable[TensorFile]) -> str:
    """Return `content_digest` of all floats in some files. Raises `SourceError` if they cannot be read."""
    by_name = {name: file for file in files for name in file if file.kind(name) in FLOATS}
    return content_digest(by_name, lambda name: by_name[name][name])
