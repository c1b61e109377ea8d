"""The suite that compares backends and peers: `calotype bench`."""
