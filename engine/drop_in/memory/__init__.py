"""Which weights in memory were written: checksums, and the pages of mapped files."""
