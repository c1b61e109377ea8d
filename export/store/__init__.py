"""The store: folders addressed by the digest of everything that they were built from."""
