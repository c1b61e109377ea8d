"""Components as ONNX: traced, checked against PyTorch, and run on captured inputs."""
