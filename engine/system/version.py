"""The version, which everything may import without the rest of the package."""

__version__ = "0.1.0"
