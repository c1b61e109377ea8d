"""A plan: its manifest, its components and their tensors, and the families of models."""
