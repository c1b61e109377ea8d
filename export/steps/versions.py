"""The versions of the tools that decide a traced graph, read without importing the tools."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from calotype.backends.compatibility import installed as installed_backend
from calotype.errors import SourceError

OPSET = 21  # has GroupNormalization and Gelu; 23's Attention pays only in fp16 with TensorRT
_TOOLS = ("torch", "onnxscript", "diffusers", "transformers")
_MISSING = "none"


def versions() -> dict[str, str]:
    """Return tool -> version for the store key of a traced graph. Raises `SourceError` if a tool is not installed."""
    tools = {name: installed(name) for name in _TOOLS}
    missing = [name for name, number in tools.items() if number == _MISSING]
    if missing:
        raise SourceError(
            f"cannot trace a model: {', '.join(missing)} not installed. Only plans load without it; to use other "
            "models, pip install 'calotype[build]'."
        )
    return {**tools, "opset": str(OPSET)}


def tool_versions(backend: str | None = None) -> dict[str, str]:
    """Return tool -> version for keys of artifacts that derive from a traced graph, with `backend`'s package if any."""
    tools = {name: installed(name) for name in ("onnx", "onnx-ir", "numpy")}
    return {**versions(), **tools, **({} if backend is None else {backend: installed_backend(backend) or _MISSING})}


def installed(package: str) -> str:
    """Return the version of a package, "none" if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return _MISSING
