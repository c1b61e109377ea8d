"""The image prompts of a call: images, embeddings, masks and scales for each IP-Adapter, checked."""
