"""The command `calotype serve`."""
