"""Trace components to ONNX, check them against PyTorch, and capture the inputs of real runs."""
