"""Triton kernels. Each file has one kernel with its formula, its float32 reference and its launcher.

A launcher returns `Launch` objects. They run on the device of their tensors, or are compiled ahead of time without a
GPU. This package only imports torch and triton, and does not know models, plans or backends.
"""
