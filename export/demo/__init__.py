"""Training and evaluation of the demonstration model, a small Stable Diffusion. The runtime never imports it."""
