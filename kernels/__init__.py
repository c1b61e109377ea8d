"""Triton kernels, each beside its float32 reference. Empty so far: the GPU path comes later."""
