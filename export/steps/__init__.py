"""Shared by the steps of a build: child processes, progress display, and the versions of tools."""
