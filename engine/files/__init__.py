"""Files that Calotype keeps: paths, digests, locks between processes, and JSON of strangers."""
