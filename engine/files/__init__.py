"""Files: the cache, its paths and locks, digests, and JSON files from strangers."""
