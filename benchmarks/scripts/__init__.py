"""Commands beside the suite, one file each."""
