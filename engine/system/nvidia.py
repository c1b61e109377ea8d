"""Detect an NVIDIA GPU and its name. Detection only checks for the driver's files, which costs nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

# Files of a loaded driver: on Linux, in containers with a GPU, and in Windows' Linux.
_MARKS = ("proc/driver/nvidia/version", "dev/nvidiactl", "dev/dxg")
_HIDDEN = ("", "-1", "none", "void")


def has_gpu(root: Path = Path("/")) -> bool:
    """Return whether a driver is loaded and CUDA_VISIBLE_DEVICES does not hide its GPUs."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip().lower() in _HIDDEN:
        return False
    return any((root / mark).exists() for mark in _MARKS)


def gpu_name() -> str | None:
    """Return the first NVIDIA GPU's name and driver from nvidia-smi, or None without a GPU."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    lines = [line for line in output.splitlines() if line.strip()]
    return ", driver ".join(part.strip() for part in lines[0].split(",")) if lines else None
