"""Triton kernels, each in a file of its own with its formula, its float32 reference and its launcher.

A launcher does not launch: it makes `Launch`es, which run where their tensors are, or are compiled ahead of time for a
GPU that is not there. Imports torch and triton alone, and knows nothing of models, plans or backends.
"""
