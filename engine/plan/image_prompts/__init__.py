"""The attention of a U-Net to image prompts (IP-Adapter), as data: its layers, and the check of a plan's tensors."""
