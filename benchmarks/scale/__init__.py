"""How seconds and memory grow with the size of the work: `calotype bench --preset scale`."""
