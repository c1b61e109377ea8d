"""Training and evaluation of the demonstration model, a small Stable Diffusion. It runs from the checkout only."""
