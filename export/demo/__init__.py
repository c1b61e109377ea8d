"""The demonstration model: scenes drawn by code, a judge of pictures, and the training of a small Stable Diffusion.

Knows how the shipped model was made and how it is judged. The runtime never imports this room.
"""
