"""Schedulers compiled to matrices: compile, store and run them. Also noise and guidance."""
