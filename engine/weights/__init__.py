"""Weights: readers for files of weights that need no further library, and low-rank updates."""
