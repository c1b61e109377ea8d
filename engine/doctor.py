"""What this machine can run: versions, threads, backends with the reason where one cannot, and the store."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from calotype import __version__, backends, threads
from calotype.home import home
from calotype.memory import available_bytes

_PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy")


def examine() -> str:
    """The findings, one a line, for a terminal or a bug report."""
    lines = [f"calotype     {__version__}, Python {platform.python_version()}, {platform.platform()}"]
    lines.append(f"threads      {threads.available()} of {os.cpu_count()} cores, by affinity and quota")
    free = available_bytes()
    lines.append(f"memory       {'unknown' if free is None else f'{free / 2**30:.1f} GiB free'}")
    lines.extend(f"{name:<16} {_version(name)}" for name in _PACKAGES)
    lines.extend(f"backend {name:<12} {backends.unavailable(name) or 'ready'}" for name in backends.AUTO)
    lines.append(f"store        {home()}, {_store()}")
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _store() -> str:
    root = home()
    if not root.exists():
        return "not made yet"
    used = sum(p.stat().st_size for p in root.rglob("*") if p.is_file())
    writable = "" if os.access(root, os.W_OK) else ", NOT WRITABLE (set CALOTYPE_HOME)"
    return f"{used / 2**20:.0f} MiB{writable}"
