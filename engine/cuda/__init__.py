"""Shared parts of the CUDA backends: the device, CUDA graphs, and modules that call the kernels."""
