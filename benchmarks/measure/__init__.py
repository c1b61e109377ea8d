"""Measurements: load, peaks, intervals, correctness, and the record of a run."""
