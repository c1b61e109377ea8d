"""LoRA files: their formats, and the weight changes that loaded components get from them."""
