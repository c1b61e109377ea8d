"""Is there an NVIDIA GPU? Read from the system's own files, so that asking costs nothing and imports nothing."""

from __future__ import annotations

import os
from pathlib import Path

# What the driver leaves where it is loaded: Linux, containers that were handed a GPU, and Windows' Linux.
_MARKS = ("proc/driver/nvidia/version", "dev/nvidiactl", "dev/dxg")
_HIDDEN = ("", "-1", "none", "void")


def has_gpu(root: Path = Path("/")) -> bool:
    """Is a driver loaded, and does nobody hide its GPUs from this process?"""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip().lower() in _HIDDEN:
        return False
    return any((root / mark).exists() for mark in _MARKS)
