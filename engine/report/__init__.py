"""The report of a call, and the metadata of its PNG files."""
