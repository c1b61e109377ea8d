"""Upscalers: networks that make an image larger, in Python and on the command line."""

LANCZOS = "lanczos"
RESAMPLINGS = (LANCZOS, "latent")  # what `hires` can do without a network
