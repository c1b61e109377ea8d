"""Calotype: a compiled inference engine for Stable Diffusion."""
