"""PyTorch: the eager reference, the fused modules on CUDA, and the networks as modules."""
