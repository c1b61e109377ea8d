"""Video models as data: fields of their configs, the memory of their frames, and the tensors that a plan lists."""
