"""The suite that compares backends and peers. Empty so far."""
