"""Calotype's own API: jobs, files, options, health and metrics."""
