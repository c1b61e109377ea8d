"""The commands `calotype build` and `calotype cache`."""
