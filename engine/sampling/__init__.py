"""Schedulers as matrices: compiled, stored, run step by step; noise and guidance."""
