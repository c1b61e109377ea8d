"""LoRA files: their formats, and the weight updates of loaded components."""
