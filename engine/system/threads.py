"""How many threads to use: what this process may run on, not what the machine has.

A container's CPU quota and a process's affinity are both invisible to ONNX Runtime, and partly to PyTorch; asking
for more threads than there are cores to run them is many times slower than asking for fewer.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available(cgroup: Path = _CGROUP) -> int:
    """Cores that this process may keep busy, by affinity and by cgroup quota; at least 1."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS or Windows
        cores = os.cpu_count() or 1
    limit = quota(cgroup)
    return max(1, cores if limit is None else min(cores, math.ceil(limit)))


def quota(cgroup: Path = _CGROUP) -> float | None:
    """Cores' worth of time that the cgroup grants, or None where it sets no limit."""
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
