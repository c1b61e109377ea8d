"""Prompts: weights inside the text, and token ids."""
