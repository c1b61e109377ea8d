"""The tensorrt-rtx backend: runs engines of TensorRT-RTX, which has TensorRT's API, with the same runner."""

from .runner import backend_with

BACKEND = backend_with("tensorrt-rtx")
