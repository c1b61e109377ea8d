"""What the full-size networks launch on an NVIDIA GPU, traced without one: kernels, copies, bytes and operations."""
