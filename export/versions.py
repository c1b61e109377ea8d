"""What decides a traced graph besides the model, read without importing any of it."""

from __future__ import annotations

from importlib.metadata import version

OPSET = 21  # has GroupNormalization and Gelu; 23's Attention pays only in fp16 with TensorRT


def versions() -> dict[str, str]:
    """Part of a traced graph's key in the store."""
    tools = {name: version(name) for name in ("torch", "onnxscript", "diffusers", "transformers")}
    return {**tools, "opset": str(OPSET)}
