"""What decides a graph besides the model: the versions of the tools, read without importing any of them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from calotype.backends import compatibility as trust
from calotype.errors import SourceError

OPSET = 21  # has GroupNormalization and Gelu; 23's Attention pays only in fp16 with TensorRT
_TOOLS = ("torch", "onnxscript", "diffusers", "transformers")
_LACKING = "none"


def versions() -> dict[str, str]:
    """Part of a traced graph's key in the store. Raises `SourceError` where a tool is missing."""
    found = {name: installed(name) for name in _TOOLS}
    lacking = [name for name, told in found.items() if told == _LACKING]
    if lacking:
        raise SourceError(
            f"only a plan can be opened without {', '.join(lacking)}: to make one of another model, "
            "pip install 'calotype[build]'."
        )
    return {**found, "opset": str(OPSET)}


def tool_versions(backend: str | None = None) -> dict[str, str]:
    """Part of the key of what is made from a traced graph; with the backend's own, of what is proved on it."""
    tools = {name: installed(name) for name in ("onnx", "onnx-ir", "numpy")}
    return {**versions(), **tools, **({} if backend is None else {backend: trust.installed(backend) or _LACKING})}


def installed(package: str) -> str:
    """The version of a package, "none" where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return _LACKING
