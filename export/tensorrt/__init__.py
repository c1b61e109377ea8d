"""TensorRT engines built from graphs."""
