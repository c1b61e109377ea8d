"""The pipeline as one captured CUDA graph."""
