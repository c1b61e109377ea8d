"""Commands next to the suite, one file each."""
