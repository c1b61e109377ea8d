"""The number of threads to use: the cores available to this process, not those of the machine.

ONNX Runtime ignores a container's CPU quota and a process's affinity, and so does PyTorch in part. Using more threads
than available cores is many times slower than using fewer.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available(cgroup: Path = _CGROUP) -> int:
    """Return the number of cores available to this process, by affinity and cgroup quota; at least 1."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS or Windows
        cores = os.cpu_count() or 1
    limit = quota(cgroup)
    return max(1, cores if limit is None else min(cores, math.ceil(limit)))


def quota(cgroup: Path = _CGROUP) -> float | None:
    """Return the cgroup's quota in cores, or None without a limit."""
    try:  # version 2: "max 100000" or "150000 100000"
        limit, period = (cgroup / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:  # version 1: -1 means no limit
        limit_us = int((cgroup / "cpu" / "cpu.cfs_quota_us").read_text())
        period_us = int((cgroup / "cpu" / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return limit_us / period_us if limit_us > 0 and period_us > 0 else None
