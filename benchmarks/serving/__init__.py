"""Measurements of the server: the engine loop against a lock, and whole servers under the same traffic."""
