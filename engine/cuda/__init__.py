"""What CUDA backends share: the device, captured graphs, and modules that call the kernels."""
