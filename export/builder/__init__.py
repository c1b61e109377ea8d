"""`build` and `prepare`: a source becomes a plan."""
