"""TensorRT and TensorRT-RTX: engines, refits, and the libraries themselves."""
