"""Samplers fitted to a model: record its runs, solve for the rows, and compare them on held-out prompts."""
