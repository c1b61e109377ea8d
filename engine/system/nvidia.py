"""Is there an NVIDIA GPU, and what is its name? The first is read from the system's own files, which costs nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

# What the driver leaves where it is loaded: Linux, containers that were handed a GPU, and Windows' Linux.
_MARKS = ("proc/driver/nvidia/version", "dev/nvidiactl", "dev/dxg")
_HIDDEN = ("", "-1", "none", "void")


def has_gpu(root: Path = Path("/")) -> bool:
    """Is a driver loaded, and does nobody hide its GPUs from this process?"""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip().lower() in _HIDDEN:
        return False
    return any((root / mark).exists() for mark in _MARKS)


def gpu_name() -> str | None:
    """The first NVIDIA GPU's name and driver, as nvidia-smi tells them; None where there is none."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    lines = [line for line in told.splitlines() if line.strip()]
    return ", driver ".join(part.strip() for part in lines[0].split(",")) if lines else None
