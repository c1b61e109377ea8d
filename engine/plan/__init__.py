"""The plan of a model: its manifest, its components and their tensors, and the model families."""
