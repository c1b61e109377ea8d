"""Weights: read from files without the libraries that wrote them, and low-rank changes of them."""
