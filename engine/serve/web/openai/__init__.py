"""OpenAI's API for images."""
