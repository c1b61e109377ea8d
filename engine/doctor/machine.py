"""Inspect the machine: processor, threads, memory and disk, read from the system's files.

Unknown values are None. This file does not know packages or backends, and does not import numpy, so that
`calotype.doctor.doctor` works even if everything else is broken.
"""

from __future__ import annotations

import os
import platform
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CalotypeError
from ..files.paths import home
from ..system import threads
from ..system.memory import available_bytes, proc_bytes

# Flags of /proc/cpuinfo that affect the speed of networks, and their names: x86 first, then Arm.
_FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_bf16": "AMX BF16",
    "amx_int8": "AMX INT8",
    "asimddp": "dot product",
    "i8mm": "I8MM",
    "bf16": "BF16",
    "sve": "SVE",
}
_X86 = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")  # listed as absent, too


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Properties of the machine. Sizes are in bytes; None means unknown."""

    system: str
    python: str
    processor: str
    features: tuple[str, ...]
    lacking: tuple[str, ...]
    cores: int | None
    affinity: int | None
    quota: float | None  # cores by cgroup; None means no limit
    threads: int  # the number that Calotype uses
    memory_bytes: int | None
    memory_free_bytes: int | None
    disk_free_bytes: int | None  # on the cache's file system
    store: str
    store_bytes: int | None  # None if it does not exist yet
    store_writable: bool


def inspect_machine(root: Path = Path("/")) -> Machine:
    """Return the machine's properties. Unreadable ones are None or empty."""
    flags, name = processor(root)
    return Machine(
        system=platform.platform(),
        python=platform.python_version(),
        processor=name,
        features=tuple(words for flag, words in _FEATURES.items() if flag in flags),
        lacking=tuple(_FEATURES[flag] for flag in _X86 if "sse2" in flags and flag not in flags),
        cores=os.cpu_count(),
        affinity=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        quota=threads.quota(root / "sys/fs/cgroup"),
        threads=threads.available(root / "sys/fs/cgroup"),
        memory_bytes=proc_bytes(root / "proc/meminfo", "MemTotal"),
        memory_free_bytes=available_bytes(root),
        **_cache_folder(),
    )


def processor(root: Path = Path("/")) -> tuple[frozenset[str], str]:
    """Return the flags and the name of the processor."""
    entries: dict[str, str] = {}
    with suppress(OSError, ValueError):
        for line in (root / "proc/cpuinfo").read_text(errors="replace").splitlines():
            name, colon, value = line.partition(":")
            if colon:
                entries.setdefault(name.strip().lower(), value.strip())
    flags = entries.get("flags", entries.get("features", "")).lower()
    return frozenset(flags.split()), entries.get("model name", platform.machine())


def _cache_folder() -> dict[str, Any]:
    """Return the fields of `Machine` about the cache. Before its folder exists, the nearest parent counts."""
    unknown: dict[str, Any] = {"disk_free_bytes": None, "store_bytes": None, "store_writable": False}
    try:
        store = home()
    except CalotypeError:
        return {"store": "no folder: set CALOTYPE_HOME to one", **unknown}
    fields: dict[str, Any] = {"store": str(store), **unknown}
    with suppress(OSError):
        nearest = next(path for path in (store, *store.parents) if path.exists())
        fields["store_writable"] = os.access(nearest, os.W_OK)
        fields["disk_free_bytes"] = shutil.disk_usage(nearest).free
    if os.path.isdir(store):
        fields["store_bytes"] = 0
        for folder, _, names in os.walk(store):
            for name in names:
                with suppress(OSError):  # it may vanish during the count
                    fields["store_bytes"] += os.lstat(os.path.join(folder, name)).st_size
    return fields
